//! Where podman may have what it has itself (containers-storage.conf(5)). Which of these places it is depends on podman's version and on the environment
//! that it runs in, so all of them are looked into: one that is not there has nothing.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Error;
use super::idmap::Account;
use crate::sys::{limit, outside};

/// Those of the machine.
const OF_MACHINE: [&str; 2] = ["/etc/containers/storage.conf", "/usr/share/containers/storage.conf"];

/// Bytes of a storage.conf.
const LONGEST: u64 = 1 << 20;

/// How long a filesystem may take that a storage.conf is on.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whose podman it is.
#[derive(Debug, Clone)]
pub struct Person {
    pub uid: u32,
    pub name: String,
    pub home: PathBuf,
    /// $XDG_DATA_HOME, or what stands for it.
    pub data: PathBuf,
    /// The storage.conf that is theirs alone.
    pub conf: PathBuf,
}

/// Where the store of this process's own user may be.
///
/// # Errors
/// Where a storage.conf cannot be read.
pub fn of_person(person: Person) -> Result<Vec<PathBuf>, Error> {
    answered(&person.conf.clone(), move || {
        let own = text(&person.conf, outside::read(&person.conf, LONGEST))?;
        Ok(places(&person, &own, &of_machine()?))
    })
}

/// Does what may wait for the filesystem that a storage.conf is on.
fn answered<T: Send + 'static>(
    conf: &Path,
    read: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let silent = || Err(Error::File { path: conf.to_owned(), source: limit::silence(PATIENCE) });
    limit::within(PATIENCE, read).unwrap_or_else(silent)
}

/// Where that of another user of the machine may be, as far as it does not depend on their environment.
pub(super) fn of_account(account: &Account) -> Result<Vec<PathBuf>, Error> {
    let Account { name, uid, home, .. } = account.clone();
    let (data, conf) = (home.join(".local/share"), home.join(".config/containers/storage.conf"));
    answered(&conf.clone(), move || {
        let own = text(&conf, read_theirs(&conf, uid))?;
        Ok(places(&Person { uid, name, home, data, conf }, &own, &of_machine()?))
    })
}

fn of_machine() -> Result<String, Error> {
    let texts = OF_MACHINE.iter().map(|path| text(Path::new(path), outside::read(Path::new(path), LONGEST)));
    texts.collect::<Result<Vec<_>, _>>().map(|texts| texts.join("\n"))
}

/// One that is not there says nothing.
fn text(path: &Path, read: io::Result<Vec<u8>>) -> Result<String, Error> {
    match read {
        Ok(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(String::new())
        }
        Err(source) => Err(Error::File { path: path.to_owned(), source }),
    }
}

fn read_theirs(path: &Path, uid: u32) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    open_theirs(path, uid)?.take(LONGEST).read_to_end(&mut text).map(|_| text)
}

/// A file of a user's. Symlinks are followed, since such files are often kept elsewhere; but root reads nothing that the user may not.
fn open_theirs(path: &Path, uid: u32) -> io::Result<File> {
    let found = outside::find(path)?;
    let meta = found.metadata()?;
    if meta.uid() != uid && meta.mode() & 0o004 == 0 {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "not a file of that user"));
    }
    outside::open_found(&found)
}

/// Of the machine's files a user's podman takes one key only: what the other names is root's.
fn places(person: &Person, own: &str, of_machine: &str) -> Vec<PathBuf> {
    let (default, key) = match person.uid {
        0 => ("/var/lib/containers/storage".into(), "graphroot"),
        _ => (person.data.join("containers/storage"), "rootless_storage_path"),
    };
    let named = values(own, "graphroot").chain(values(own, key)).chain(values(of_machine, key));
    let mut places: Vec<PathBuf> = Vec::new();
    for place in named.map(|place| expanded(place, person)).chain([default]) {
        if place.is_absolute() && !places.contains(&place) {
            places.push(place);
        }
    }
    places
}

/// The values of `key = "..."` in a storage.conf, which is TOML.
fn values<'a>(conf: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    let value = move |line: &'a str| {
        let (found, value) = line.split_once('=')?;
        let quote = value.trim().chars().next().filter(|quote| ['"', '\''].contains(quote))?;
        let value = value.trim().strip_prefix(quote)?.split(quote).next()?;
        (found.trim() == key && !value.is_empty()).then_some(value)
    };
    conf.lines().filter_map(value)
}

/// As containers/storage does it.
fn expanded(place: &str, person: &Person) -> PathBuf {
    let (home, uid) = (person.home.to_string_lossy(), person.uid.to_string());
    let variables = [("HOME", &*home), ("USER", &*person.name), ("UID", &*uid)];
    let expand = |text: String, (name, value): (&str, &str)| {
        text.replace(&format!("${{{name}}}"), value).replace(&format!("${name}"), value)
    };
    variables.into_iter().fold(place.to_owned(), expand).into()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn ann() -> Person {
        let home = PathBuf::from("/home/ann");
        Person { uid: 7, name: "ann".into(), data: home.join(".local/share"), conf: home.join("conf"), home }
    }

    #[test]
    fn podmans_own_store_may_be_wherever_a_file_says() {
        let all = |own, machine| {
            let places = places(&ann(), own, machine);
            places.into_iter().map(|place| place.display().to_string()).collect::<Vec<_>>()
        };
        let default = "/home/ann/.local/share/containers/storage";
        assert_eq!(all("", ""), [default]);
        let own = "[storage]\n# graphroot = \"/a\"\nrootless_storage_path = '/c/$UID'\n graphroot=\"$HOME/b\" # big\n";
        let machine = "graphroot = \"/var/lib/containers/storage\"\nrootless_storage_path = \"/srv/${USER}/$UID\"\n";
        assert_eq!(all(own, machine), ["/home/ann/b", "/c/7", "/srv/ann/7", default]);
        assert_eq!(all("graphroot = \"\"\nrootless_storage_path = \"relative\"\n", ""), [default]);
        let root = Person { uid: 0, ..ann() };
        let places = places(&root, "graphroot = \"/a\"\n", machine);
        assert_eq!(places, [Path::new("/a"), Path::new("/var/lib/containers/storage")]);
    }

    #[test]
    fn of_a_users_files_root_reads_what_the_user_may() {
        let dir = tempfile::tempdir().unwrap();
        let (conf, link) = (dir.path().join("conf"), dir.path().join("link"));
        fs::write(&conf, "x").unwrap();
        symlink(&conf, &link).unwrap();
        let me = nix::unistd::geteuid().as_raw();
        let readable = |mode: u32, uid: u32| {
            fs::set_permissions(&conf, fs::Permissions::from_mode(mode)).unwrap();
            open_theirs(&link, uid).is_ok()
        };
        assert!(readable(0o600, me) && readable(0o644, me.wrapping_add(1)));
        assert!(!readable(0o640, me.wrapping_add(1)));
        assert!(open_theirs(Path::new("/dev/null"), me).is_err());
    }

    #[test]
    fn a_file_that_is_not_there_says_nothing_and_one_that_cannot_be_read_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let text = |path: &Path| text(path, read_theirs(path, nix::unistd::geteuid().as_raw()));
        assert_eq!(text(&dir.path().join("a/b")).unwrap(), "");
        fs::write(dir.path().join("a"), "").unwrap();
        assert_eq!(text(&dir.path().join("a/b")).unwrap(), "");
        assert!(matches!(text(dir.path()), Err(Error::File { .. })));
    }
}
