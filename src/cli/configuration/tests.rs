//! Files and variables of every kind, and what commands then have.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use clap::{ArgAction, CommandFactory, FromArgMatches};
use tempfile::TempDir;

use super::files::Places;
use super::settings::{Origin, Settings};
use super::*;
use crate::cli::args::{Command as Typed, MountArgs};

/// A machine: /etc/crfs is etc, ~/.config/crfs is home.
pub(super) struct Machine {
    dir: TempDir,
    variables: BTreeMap<String, OsString>,
}

impl Machine {
    fn new() -> Self {
        let machine = Self { dir: tempfile::tempdir().unwrap(), variables: BTreeMap::new() };
        fs::create_dir_all(machine.dir.path().join("etc/config.d")).unwrap();
        fs::create_dir(machine.dir.path().join("home")).unwrap();
        machine
    }

    pub(super) fn with(name: &str, text: impl AsRef<[u8]>) -> Self {
        let machine = Self::new();
        machine.write(name, text);
        machine
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.variables.insert(name.to_owned(), value.into());
    }

    pub(super) fn read(&self) -> Settings {
        let path = |name: &str| self.dir.path().join(name);
        let places = Places { system: path("etc"), user: Some(path("home/config.toml")) };
        Settings::read(&Cli::command(), &places, &self.variables)
    }

    /// Everything that is wrong, without the directory of the files.
    pub(super) fn faults(&self) -> Vec<String> {
        let dir = format!("{}/", self.dir.path().display());
        self.read().faults().map(|fault| chain(fault).replace(&dir, "")).collect()
    }

    fn typed(&self, words: &str) -> Typed {
        let settings = self.read();
        assert_eq!(self.faults(), Vec::<String>::new());
        let words = || std::iter::once("crfs").chain(words.split(' '));
        let command = names(&Cli::command().get_matches_from(words()));
        let crfs = with_defaults(Cli::command(), &command, &command, &settings);
        Cli::from_arg_matches(&crfs.try_get_matches_from(words()).unwrap()).unwrap().command
    }

    fn mount(&self, options: &str) -> MountArgs {
        match self.typed(&format!("mount {options}alpine /mnt")) {
            Typed::Mount(args) => args,
            other => panic!("{other:?}"),
        }
    }
}

/// All sources that there are, in each combination, at the top and in the table of the command.
#[test]
fn the_last_source_that_says_anything_wins() {
    let files = ["etc/config.toml", "etc/config.d/10-a.toml", "etc/config.d/20-b.toml", "home/config.toml"];
    for is_there in 0u32..64 {
        for in_table in 0u32..16 {
            if in_table & !is_there != 0 {
                continue;
            }
            let (mut machine, has) = (Machine::new(), |bit: usize| is_there >> bit & 1 == 1);
            for (bit, file) in files.iter().enumerate().filter(|(bit, _)| has(*bit)) {
                let head = if in_table >> bit & 1 == 1 { "[mount]\n" } else { "" };
                machine.write(file, format!("{head}cache-size = \"{bit}K\"\n"));
            }
            if has(4) {
                machine.set("CRFS_CACHE_SIZE", "4K");
            }
            let typed = if has(5) { "--cache-size 5K " } else { "" };
            let wins = (0..6).rev().find(|bit| has(*bit)).map(|bit| bit as u64 * 1024);
            assert_eq!(machine.mount(typed).image.cache.cache_size, wins, "{is_there:b} {in_table:b}");
        }
    }
}

#[test]
fn what_is_said_to_fewer_commands_wins_in_the_same_file() {
    let text = "[store.serve]\nprefetch = \"none\"\n[store]\ncache-dir = \"/store\"\n[index]\ncache-dir = \"/index\"\n";
    let machine = Machine::with("etc/config.toml", format!("cache-dir = \"/all\"\nprefetch = \"hints\"\n{text}"));
    assert_eq!(machine.mount("").image.cache.cache_dir.unwrap(), Path::new("/all"));
    let settings = machine.read();
    let said = |command: &str, name: &str| {
        let command: Vec<_> = command.split(' ').map(str::to_owned).collect();
        let (_, setting) = settings.of(&command).find(|(key, _)| key.name() == name).unwrap();
        setting.values.clone()
    };
    assert_eq!(said("store serve", "cache-dir"), ["/store"]);
    assert_eq!(said("index", "cache-dir"), ["/index"]);
    assert_eq!(
        (said("store serve", "prefetch"), said("mount", "prefetch")),
        (vec!["none".into()], vec!["hints".into()])
    );
}

#[test]
fn values_are_written_as_they_are_typed() {
    let text = "io-deadline = 90\nmemory-limit = \"1GiB\"\ntls-verify = false\nwhole-layer-below = 0x100\nsoci-v1 = true\n\
        podman-root = [\"/a\", \"/b\"]\nplatform = \"linux/arm64\"\n[store.serve]\nmetrics-listen = \"unix:/run/m\"\n";
    let machine = Machine::with("home/config.toml", text);
    let access = machine.mount("").image.access;
    assert_eq!((access.io_deadline.as_secs(), access.memory_limit), (90, 1 << 30));
    assert_eq!((access.tls_verify, access.whole_layer_below, access.soci_v1), (Some(false), 256, true));
    assert!(!machine.mount("--soci-v1=false ").image.access.soci_v1, "what is typed wins");
    let Typed::Store(store) = machine.typed("store rm alpine") else { panic!() };
    assert!(format!("{store:?}").contains(r#"podman_root: ["/a", "/b"]"#), "{store:?}");
    let mut machine = Machine::new();
    machine.set("CRFS_PODMAN_ROOT", "/c:/d");
    machine.set("CRFS_CACHE_DIR", "here");
    let Typed::Store(store) = machine.typed("store rm alpine") else { panic!() };
    assert!(format!("{store:?}").contains(r#"podman_root: ["/c", "/d"]"#), "{store:?}");
    assert_eq!(machine.mount("").image.cache.cache_dir.unwrap(), Path::new("here"), "as if it was typed");
}

/// A file, and what is said of it.
const WRONG: &[(&str, &str)] = &[
    ("cache-sise = \"1G\"", "line 1: cache-sise: there is no such key; did you mean cache-size?"),
    ("\n\ncache_size = \"1G\"", "line 3: cache_size: there is no such key; did you mean cache-size?"),
    ("colour = 1", "line 1: colour: there is no such key; `crfs config show` lists all"),
    (
        "cache-size = \"10X\"",
        "line 1: cache-size: \"10X\" is not valid: \"X\" is not a unit of size: K, M, G, KiB, MiB or GiB",
    ),
    ("io-deadline = 0", "line 1: io-deadline: \"0\" is not valid: no time at all is never enough~"),
    ("cache-size = 1.5", "line 1: cache-size: a text in quotes is wanted, as behind --cache-size on the command line"),
    ("cache-size = true", "line 1: cache-size: a text in quotes is wanted"),
    ("cache-size = []", "line 1: cache-size: a text in quotes is wanted"),
    ("cache-dir = 7", "line 1: cache-dir: a text in quotes is wanted"),
    ("cache-dir = \"\"", "line 1: cache-dir: \"\" is no absolute path"),
    ("cache-dir = \"~/c\"", "line 1: cache-dir: \"~/c\" is no absolute path: it has to start with /"),
    ("podman-root = [\"/a\",\n\"b\"]", "line 1: podman-root: \"b\" is no absolute path"),
    ("podman-root = 1", "line 1: podman-root: an array of texts in quotes is wanted"),
    ("tls-verify = 1", "line 1: tls-verify: true or false is wanted"),
    ("tls-verify = \"maybe\"", "line 1: tls-verify: \"maybe\" is none of true, false"),
    ("platform = \"arm\"", "line 1: platform: \"arm\" is not valid"),
    ("json = true", "line 1: json: --json is for one call, and has no key"),
    ("[mount]\nforeground = true", "line 2: foreground: --foreground is for one call, and has no key"),
    (
        "prefetch = \"all\"",
        "line 1: prefetch: \"all\" is none of none, hints (`crfs store serve`; in a table it is for one",
    ),
    ("[mount]\nprefetch = \"some\"", "line 2: prefetch: \"some\" is none of none, hints, all"),
    (
        "[mount]\nbandwidth = 9",
        "line 2: bandwidth: `crfs mount` has no such option, but `crfs inspect` has: put it above the",
    ),
    ("[mont]\n", "line 1: mont: there is no such table; did you mean mount?"),
    ("\n[store.serv]\nprefetch = \"none\"", "line 2: serv: there is no such table; did you mean store.serve?"),
    ("[colours]\n", "line 1: colours: there is no such table; `crfs config show` lists all"),
    ("[umount]\nall = true", "line 1: umount: `crfs umount` has no options that have a key"),
    ("[store-worker]\nroot = \"/\"", "line 1: store-worker: there is no such table"),
    ("mount = 1", "line 1: mount: is a command: write [mount], and below it what holds for that"),
    ("[mount.prefetch]\nx = 1", "line 1: prefetch: a text in quotes is wanted"),
    ("[[mount]]\nprefetch = \"all\"", "line 1: mount: is a command"),
    ("cache-size = \"1G\"\ncache-size = \"2G\"", "line 2: not TOML: "),
    ("cache-size = 1G", "line 1: not TOML: "),
    ("cache-size", "line 1: not TOML: "),
];

#[test]
fn what_is_wrong_is_named_with_its_place_and_what_is_right() {
    for (text, told) in WRONG {
        let faults = Machine::with("etc/config.d/a.toml", text).faults();
        // A ~ stands for the end.
        let told = format!("etc/config.d/a.toml, {told}");
        let is_told = faults.len() == 1 && format!("{}~", faults[0]).starts_with(&told);
        assert!(is_told, "{text}\n  {faults:?}\n  {told}");
    }
    let many = (0..5000).map(|number| format!("key{number} = 1\n")).collect::<String>();
    assert_eq!(Machine::with("etc/config.toml", many).faults().len(), 10, "and no more");
}

#[test]
fn all_faults_keep_from_using_any_of_it() {
    let machine = Machine::with("etc/config.toml", "cache-dir = \"/c\"\nx = 1\ny = 2\n");
    let error = machine.read().checked(&["mount".to_owned()]).unwrap_err().to_string();
    assert!(error.contains("line 2: x: ") && error.ends_with("and 1 more: `crfs config show` names them"), "{error}");
}

/// Makes something where a file may be.
type Make<'a> = &'a dyn Fn(&Path);

#[test]
fn only_a_plain_file_that_nobody_else_may_write_is_read() {
    let refused = |make: Make<'_>| {
        let machine = Machine::new();
        make(&machine.dir.path().join("home/config.toml"));
        machine.faults()
    };
    let mode = |mode| {
        move |path: &Path| {
            fs::write(path, "cache-size = 1\n").unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    let is_root = nix::unistd::geteuid().is_root();
    let wrong: [(Make<'_>, &str); 5] = [
        (&|path| fs::create_dir(path).unwrap(), "cannot be used: not a regular file"),
        (&|path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap(), "not a regular file"),
        (&|path| fs::write(path, vec![b'#'; 10 << 20]).unwrap(), "more than 1048576 bytes"),
        (&|path| fs::write(path, b"cache-dir = \"\xff\"").unwrap(), "it is not text in UTF-8"),
        (&mode(0o646), "others may write to it (mode 646): chmod go-w it"),
    ];
    for (make, told) in wrong {
        let faults = refused(make);
        assert!(faults.len() == 1 && faults[0].contains(told), "{faults:?} {told}");
    }
    assert_eq!(refused(&mode(0o664)).len(), usize::from(is_root), "a group of one's own may");
    let nothing: [&dyn Fn(&Path); 3] =
        [&|path| symlink("nowhere", path).unwrap(), &|path| symlink("/dev/null", path).unwrap(), &|path| {
            fs::write(path, "").unwrap()
        }];
    for make in nothing {
        assert_eq!(refused(make), Vec::<String>::new());
    }
    if is_root {
        let theirs = |path: &Path| {
            fs::write(path, "cache-size = 1\n").unwrap();
            std::os::unix::fs::chown(path, Some(4242), None).unwrap();
        };
        let faults = refused(&theirs);
        assert!(faults[0].contains("it belongs to user 4242"), "{faults:?}");
    }
}

#[test]
fn of_config_d_only_toml_files_count() {
    let machine = Machine::new();
    for name in [".hidden.toml", "a.toml~", "b.toml.dpkg-old", "README"] {
        machine.write(&format!("etc/config.d/{name}"), "wrong");
    }
    assert_eq!(machine.faults(), Vec::<String>::new());
    fs::remove_dir_all(machine.dir.path().join("etc")).unwrap();
    fs::remove_dir_all(machine.dir.path().join("home")).unwrap();
    assert_eq!(machine.faults(), Vec::<String>::new(), "and none have to be there");
}

#[test]
fn a_wrong_variable_is_a_fault_of_the_commands_that_have_the_option() {
    let mut machine = Machine::new();
    machine.set("CRFS_PREFETCH", "all");
    let checked = |command: &[&str]| {
        let command: Vec<_> = command.iter().map(|name| (*name).to_owned()).collect();
        machine.read().checked(&command).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!((checked(&["mount"]), checked(&["ls"])), (Ok(()), Ok(())));
    let told = "the variable CRFS_PREFETCH: \"all\" is none of none, hints";
    assert_eq!(checked(&["store", "serve"]), Err(told.to_owned()));
}

#[test]
fn a_variable_that_may_be_mistyped_is_named() {
    let mut machine = Machine::new();
    // The latter is what Kubernetes gives every container beside a service of that name.
    for name in ["CRFS_CACHE_DRI", "CRFS_CACHE_SIZE", "CRFS_SERVICE_HOST", "CRFS_PORT"] {
        machine.set(name, "/1");
    }
    let settings = machine.read();
    let stray: Vec<_> = settings.stray_variables().collect();
    let expected = [("CRFS_CACHE_DRI", Some("CRFS_CACHE_DIR")), ("CRFS_PORT", None), ("CRFS_SERVICE_HOST", None)];
    assert_eq!(stray, expected);
}

#[test]
fn the_variable_of_others_stands_behind_the_own_one() {
    let mut machine = Machine::with("home/config.toml", "authfile = \"/file\"\n");
    let authfile = |machine: &Machine| machine.mount("").image.access.authfile.unwrap().display().to_string();
    assert_eq!(authfile(&machine), "/file");
    machine.set("REGISTRY_AUTH_FILE", "/other");
    assert_eq!(authfile(&machine), "/other");
    machine.set("CRFS_AUTHFILE", "/own");
    assert_eq!(authfile(&machine), "/own");
}

/// A switch without a value could not be switched off on the command line, and a required option has no default.
#[test]
fn an_option_with_a_key_can_be_typed_over() {
    let keys = keys::of(&Cli::command());
    assert!(keys.len() > 50, "{}", keys.len());
    for key in keys {
        let action = key.arg.get_action();
        assert!(matches!(action, ArgAction::Set | ArgAction::Append), "{}: {action:?}", key.name());
        assert!(!key.name().is_empty() && !key.arg.is_required_set(), "{}", key.name());
    }
}

#[test]
fn commands_that_must_work_do_not_need_the_configuration() {
    let has_keys = |name: &str| keys::of(&Cli::command()).iter().any(|key| key.command[0] == name);
    for name in ["umount", "man", "completions", "config"] {
        assert!(Cli::command().find_subcommand(name).is_some() && !has_keys(name), "{name}");
    }
    let is_there = |name: &&&str| Cli::command().find_subcommand(name).is_some();
    assert!(GO_ON.iter().filter(is_there).all(|name| has_keys(name)));
}

#[test]
fn without_a_home_only_etc_is_read() {
    let places = |home: Option<&str>, config: Option<&str>| {
        let environment =
            Environment { home: home.map(Into::into), config_home: config.map(Into::into), ..Environment::default() };
        Places::of(&environment).user.map(|path| path.display().to_string())
    };
    assert_eq!(places(None, None), None);
    assert_eq!(places(Some("relative"), None), None);
    assert_eq!(places(Some("/h"), Some("relative")).unwrap(), "/h/.config/crfs/config.toml");
    assert_eq!(places(Some("/h"), Some("/c")).unwrap(), "/c/crfs/config.toml");
    assert_eq!(places(None, Some("/etc")), None, "once is enough");
}

#[test]
fn origins_have_file_and_line() {
    let machine = Machine::with("etc/config.d/a.toml", "# x\n[mount]\n\nmount-deadline = \"5s\"\n");
    let settings = machine.read();
    let (_, setting) = settings.of(&["mount".to_owned()]).next().unwrap();
    let path = machine.dir.path().join("etc/config.d/a.toml");
    assert_eq!(setting.origin, Origin::File { path, line: 4 });
}
