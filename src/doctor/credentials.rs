//! Credential files, and the helpers that they name. Nothing of what is in them is told but how many registries they know.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Finding, Setting};
use crate::errors::chain;
use crate::registry::{Surveyed, survey_credentials};
use crate::sys::limit;

/// How long a file's filesystem may take.
const PATIENCE: Duration = Duration::from_secs(10);

struct Facts {
    uid: u32,
    /// Those that are there, or cannot be read.
    files: Vec<AuthFile>,
}

struct AuthFile {
    path: PathBuf,
    read: Result<Surveyed, String>,
    /// Its owner and permissions, where they are known.
    owner: Option<(u32, u32)>,
    /// Helpers that it names and `$PATH` does not have.
    missing: Vec<String>,
}

pub(super) fn look(setting: &Setting) -> Vec<Finding> {
    let files = setting.auth_files.iter().filter_map(|path| file(path, setting)).collect();
    judge(&Facts { uid: setting.uid, files })
}

fn file(path: &Path, setting: &Setting) -> Option<AuthFile> {
    let asked = path.to_owned();
    let read = limit::within(PATIENCE, move || {
        let meta = fs::metadata(&asked).ok();
        let owner = meta.map(|meta| (meta.uid(), meta.permissions().mode() & 0o7777));
        (survey_credentials(&asked).map_err(|error| chain(&error)), owner)
    });
    let silence = || Err(chain(&limit::silence(PATIENCE)));
    let (read, owner) = read.map_or_else(|| (silence(), None), |(read, owner)| (read, owner));
    let read = match read {
        Ok(None) if setting.auth_is_named => Err("it was named, and is not there".to_owned()),
        read => read.transpose()?,
    };
    let has = |name: &String| setting.path.iter().any(|dir| is_program(&dir.join(format!("docker-credential-{name}"))));
    let missing = read.iter().flat_map(|read| &read.helpers).filter(|name| !has(name)).cloned().collect();
    Some(AuthFile { path: path.to_owned(), read, owner, missing })
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

fn judge(facts: &Facts) -> Vec<Finding> {
    if facts.files.is_empty() {
        return vec![Finding::ok("there is no credential file: registries are asked without a login")];
    }
    facts.files.iter().flat_map(|file| judge_file(file, facts.uid)).collect()
}

fn judge_file(file: &AuthFile, uid: u32) -> Vec<Finding> {
    let path = file.path.display();
    let read = match &file.read {
        Ok(read) => read,
        Err(why) => {
            return vec![Finding::problem(
                format!("{path} cannot be used: {why}"),
                "no image can be had from a registry while that file is as it is",
                format!(
                    "let this user read it, mend it, or remove it and log in again: podman login --authfile {path}"
                ),
            )];
        }
    };
    let helpers = match read.helpers.as_slice() {
        [] => String::new(),
        names => format!(", and names the helpers {}", names.join(", ")),
    };
    let mut found = vec![Finding::ok(format!("{path} has credentials for {}{helpers}", counted(read.known)))];
    found.extend(file.missing.iter().map(|name| {
        Finding::problem(
            format!("{path} names the credential helper {name:?}, and there is no docker-credential-{name} in $PATH"),
            "registries whose login it has are asked without one",
            format!("install docker-credential-{name}, or remove it from credsStore and credHelpers and log in again"),
        )
    }));
    found.extend(file.owner.and_then(|(owner, mode)| judge_mode(file, read, owner, mode, uid)));
    found
}

fn counted(known: usize) -> String {
    match known {
        0 => "no registry".to_owned(),
        1 => "1 registry or repository".to_owned(),
        known => format!("{known} registries or repositories"),
    }
}

/// A file with secrets is its owner's alone.
fn judge_mode(file: &AuthFile, read: &Surveyed, owner: u32, mode: u32, uid: u32) -> Option<Finding> {
    let path = file.path.display();
    if read.known == 0 {
        return None;
    }
    if mode & 0o077 != 0 {
        return Some(Finding::note(
            format!("{path} has the mode {mode:04o}"),
            "other users of this machine can read or change the passwords in it",
            format!("chmod 0600 {path}, and change the passwords if others may have read them"),
        ));
    }
    (owner != uid && owner != 0).then(|| {
        Finding::note(
            format!("{path} belongs to user {owner}"),
            "that user decides what registries are told who this is",
            format!("make a file of your own: podman login --authfile FILE, or chown it to {uid}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{self, Note, Ok as Good, Problem};
    use super::*;

    fn setting(path: &[&Path]) -> Setting {
        Setting { path: path.iter().map(|dir| (*dir).to_owned()).collect(), ..Setting::of_nothing() }
    }

    fn of(read: Result<Surveyed, String>, owner: (u32, u32), missing: &[&str]) -> Vec<Verdict> {
        let missing = missing.iter().map(|name| (*name).to_owned()).collect();
        let file = AuthFile { path: "/auth.json".into(), read, owner: Some(owner), missing };
        judge(&Facts { uid: 7, files: vec![file] }).iter().map(|finding| finding.verdict).collect()
    }

    #[test]
    fn each_file_is_judged() {
        let some = || Ok(Surveyed { known: 2, helpers: Vec::new() });
        let helper = || Ok(Surveyed { known: 0, helpers: vec!["pass".into()] });
        assert_eq!(judge(&Facts { uid: 7, files: Vec::new() })[0].verdict, Good);
        assert_eq!(of(some(), (7, 0o600), &[]), [Good]);
        assert_eq!(of(some(), (7, 0o644), &[]), [Good, Note]);
        assert_eq!(of(some(), (8, 0o600), &[]), [Good, Note]);
        // It holds no secret.
        assert_eq!(of(helper(), (8, 0o644), &[]), [Good]);
        assert_eq!(of(helper(), (7, 0o644), &["pass"]), [Good, Problem]);
        assert_eq!(of(Err("no valid JSON".into()), (7, 0o600), &[]), [Problem]);
    }

    #[test]
    fn a_file_is_read_without_telling_its_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.json");
        // user:hunter2
        let text = r#"{"auths":{"a.io":{"auth":"dXNlcjpodW50ZXIy"},"b.io":{}},"credHelpers":{"c.io":"pass"},"credsStore":"none"}"#;
        fs::write(&path, text).unwrap();
        let read = file(&path, &setting(&[])).unwrap();
        assert_eq!(read.read.clone().unwrap(), Surveyed { known: 1, helpers: vec!["none".into(), "pass".into()] });
        assert_eq!(read.missing, ["none", "pass"]);
        fs::write(dir.path().join("docker-credential-pass"), "").unwrap();
        fs::set_permissions(dir.path().join("docker-credential-pass"), PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(file(&path, &setting(&[dir.path()])).unwrap().missing, ["none"]);
        for broken in ["{\"auths\":{\"r.io\":{\"auth\":\"hunter2", r#"{"auths":{"r.io":{"auth":"aHVudGVyMg=="}}}"#] {
            fs::write(&path, broken).unwrap();
            let read = file(&path, &setting(&[])).unwrap();
            let found = judge_file(&read, 7);
            assert!(found[0].verdict == Problem && !format!("{found:?}").contains("hunter2"), "{found:?}");
        }
        let missing = dir.path().join("missing");
        assert!(file(&missing, &setting(&[])).is_none());
        let named = Setting { auth_is_named: true, ..setting(&[]) };
        assert_eq!(judge_file(&file(&missing, &named).unwrap(), 7)[0].verdict, Problem);
    }
}
