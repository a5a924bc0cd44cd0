//! Options from files and variables: /etc/crfs, ~/.config/crfs and CRFS_*.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::command::{Finished, send};
use crate::support::lab::CRFS;
use crate::support::{Lab, Mount, run, until};

/// A user with a home, on a machine that has other files in /etc/crfs than this one.
struct Person {
    lab: Lab,
    home: PathBuf,
    etc: PathBuf,
}

impl Person {
    fn new() -> Option<Self> {
        let lab = Lab::new()?;
        let (home, etc) = (lab.fresh("home"), lab.fresh("etc"));
        fs::create_dir_all(home.join(".config/crfs")).unwrap();
        fs::create_dir_all(etc.join("crfs/config.d")).unwrap();
        Some(Self { lab, home, etc })
    }

    fn configure(&self, text: &str) {
        fs::write(self.home.join(".config/crfs/config.toml"), text).unwrap();
    }

    /// What configures a machine is seen in a mount namespace only, where no other test looks.
    fn crfs(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Finished {
        let over = format!("mount -t overlay -o lowerdir={}:/etc overlay /etc && exec \"$@\"", self.etc.display());
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &over, "sh", CRFS]).args(arguments);
        run(command.env("HOME", &self.home).env_remove("XDG_CONFIG_HOME").envs(variables.iter().copied()))
    }

    fn own(&self, arguments: &[&str]) -> Finished {
        run(Command::new(CRFS).args(arguments).env("HOME", &self.home).env_remove("XDG_CONFIG_HOME"))
    }
}

#[test]
fn files_variables_and_options_decide_in_this_order() {
    let Some(person) = Person::new() else { return };
    let dir = |told: Finished| serde_json::from_str::<Value>(&told.ok()).unwrap()["dir"].as_str().unwrap().to_owned();
    let places: Vec<_> = (0..5).map(|_| person.lab.fresh("cache").to_str().unwrap().to_owned()).collect();
    let text = |number: usize| format!("cache-dir = {:?}\n", places[number]);
    let show = ["cache", "show", "--json"];
    fs::write(person.etc.join("crfs/config.toml"), text(0)).unwrap();
    assert_eq!(dir(person.crfs(&[], &show)), places[0]);
    fs::write(person.etc.join("crfs/config.d/a.toml"), text(1)).unwrap();
    assert_eq!(dir(person.crfs(&[], &show)), places[1]);
    person.configure(&text(2));
    assert_eq!(dir(person.crfs(&[], &show)), places[2]);
    let variable = [("CRFS_CACHE_DIR", places[3].as_str())];
    assert_eq!(dir(person.crfs(&variable, &show)), places[3]);
    assert_eq!(dir(person.crfs(&variable, &[&show[..], &["--cache-dir", &places[4]]].concat())), places[4]);
    let told = person.crfs(&[("HOME", "")], &["config", "show"]).ok();
    assert!(told.contains("/etc/crfs/config.d/a.toml, line 1") && !told.contains("config.toml, which"), "{told}");
    let told = person.crfs(&[("CRFS_CACHE_SIZE", "7K")], &["config", "show", "--json"]).ok();
    let told: Value = serde_json::from_str(&told).unwrap();
    let size = told["values"].as_array().unwrap().iter().find(|value| value["key"] == "cache-size").unwrap().clone();
    assert_eq!((&size["variable"], &size["value"]), (&"CRFS_CACHE_SIZE".into(), &"7K".into()));
}

#[test]
fn what_must_work_works_with_a_broken_configuration() {
    let Some(person) = Person::new() else { return };
    person.configure("cache-sise = \"1G\"\n");
    let file = person.home.join(".config/crfs/config.toml");
    let fault = format!("crfs: {}, line 1: cache-sise: there is no such key; did you mean cache-size?", file.display());
    for arguments in [["ls", "alpine"], ["cache", "show"], ["store", "ls"]] {
        let told = person.own(&arguments).refused();
        assert_eq!(told, format!("{fault}\n"), "{arguments:?}");
    }
    for arguments in [&["--version"][..], &["mount", "--help"], &["completions", "bash"]] {
        person.own(arguments).ok();
    }
    for arguments in [&["status"][..], &["metrics"]] {
        let told = person.own(arguments);
        assert!(told.status == Some(1) && told.stderr.starts_with(&fault), "{told}");
        assert!(told.stderr.contains("; going on without the configuration"), "{told}");
    }
    let told = person.own(&["config", "show"]);
    assert!(told.status == Some(1) && told.stderr.contains(&fault), "{told}");
    assert!(told.stdout.contains("io-deadline = \"120s\""), "{told}");
    let wrong = person.own(&["ls", "--no-such", "alpine"]);
    assert!(wrong.status == Some(2) && !wrong.stderr.contains("cache-sise"), "{wrong}");
}

#[test]
fn a_mount_keeps_what_was_decided_when_it_was_mounted() {
    let Some(person) = Person::new() else { return };
    let (cache, dir) = (person.lab.fresh("cache"), person.lab.fresh("mount"));
    person.configure(&format!("cache-dir = {cache:?}\n[mount]\nprefetch = \"none\"\n"));
    let line = person.own(&["mount", &person.lab.layout("sink-zc-new"), dir.to_str().unwrap()]).ok();
    let mount = Mount::new(dir.clone(), line);
    assert!(cache.join("v2").is_dir());
    person.configure("wrong = 1\n");
    let before = mount.pid();
    send(before, Signal::SIGKILL);
    until("another server", || mount.status().filter(|status| status["pid"] != before && status["state"] == "serving"));
    assert!(fs::read_dir(&dir).unwrap().count() > 0);
    let told = person.own(&["upgrade", dir.to_str().unwrap()]);
    assert!(told.status == Some(1) && told.stdout.contains("served by the crfs that is installed now"), "{told}");
    person.own(&["umount", dir.to_str().unwrap()]).ok();
    assert!(!mount.is_mounted());
}

#[test]
fn root_does_not_obey_a_file_of_another_user() {
    let Some(person) = Person::new() else { return };
    person.configure("tls-verify = false\n");
    let file = person.home.join(".config/crfs/config.toml");
    std::os::unix::fs::chown(&file, Some(4242), None).unwrap();
    let told = person.own(&["ls", "alpine"]).refused();
    assert!(told.contains(file.to_str().unwrap()) && told.contains("it belongs to user 4242"), "{told}");
    for dir in [".config/crfs", ".config"] {
        std::os::unix::fs::chown(person.home.join(dir), Some(4242), None).unwrap();
    }
    let told = person.own(&["ls", "alpine"]).refused();
    assert!(told.contains("belongs to user 4242"), "{told}");
    fs::remove_file(file).unwrap();
    person.own(&["cache", "show"]).ok();
}
