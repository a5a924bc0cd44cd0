//! The configuration of registries that a machine has: registries.conf, short names, policy.json and hosts.toml.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::image::{File, Layer, ramp, zstd_chunked};
use crate::support::command::Finished;
use crate::support::lab::CRFS;
use crate::support::lies::Liar;
use crate::support::{Lab, run};

/// A home with a configuration of its own, which hides that of the machine.
struct Home {
    lab: Lab,
    dir: PathBuf,
}

impl Home {
    fn new() -> Option<Self> {
        let lab = Lab::new()?;
        let dir = lab.fresh("home");
        let home = Self { lab, dir };
        home.write(".config/containers/registries.conf", "");
        Some(home)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// `crfs stat --json IMAGE /f`, with an empty cache.
    fn stat(&self, image: &str, options: &[&str]) -> Finished {
        let mut command = Command::new(CRFS);
        command.env("HOME", &self.dir).env_remove("CONTAINERS_REGISTRIES_CONF").env_remove("XDG_CACHE_HOME");
        command.arg("stat").arg("--json").arg("--cache-dir").arg(self.lab.fresh("cache")).args(options);
        run(command.args([image, "/f"]))
    }
}

fn layer() -> Layer {
    zstd_chunked(&[File { name: "f", content: ramp(1000, 1) }], 1 << 20)
}

/// Two registries, only the second of which has the image `a:1`; and their hosts.
fn two() -> (Liar, Liar, [String; 2]) {
    let (empty, full) = (Liar::new(), Liar::new());
    full.push(&[&layer()]);
    let hosts = [empty.host().to_owned(), full.host().to_owned()];
    (empty, full, hosts)
}

#[test]
fn mirrors_and_rewriting_of_registries_conf_are_followed() {
    let Some(home) = Home::new() else { return };
    let (empty, full, [first, second]) = two();
    let conf = |more: &str| {
        let registry = format!("[[registry]]\nprefix = \"registry.example/team\"\nlocation = \"{second}\"\n{more}");
        format!("{registry}[[registry.mirror]]\nlocation = \"{first}\"\n")
    };
    home.write(".config/containers/registries.conf", &conf(""));
    let told = home.stat("registry.example/team/a:1", &[]).ok();
    assert!(told.contains("\"size\":1000"), "{told}");
    assert!(!empty.requests_to("/v2/a/manifests/1").is_empty() && !full.requests_to("/v2/a/manifests/1").is_empty());

    home.write(".config/containers/registries.conf", &conf("blocked = true\n"));
    let before = [empty.requests().len(), full.requests().len()];
    home.stat("registry.example/team/a:1", &[]).refused();
    assert!(empty.requests().len() > before[0], "its mirror may still serve it");
    assert_eq!(full.requests().len(), before[1]);

    home.write(".config/containers/registries.conf", "[[registry]]\nlocation = \"registry.example\"\nblocked = true\n");
    let error = home.stat("registry.example/team/a:1", &[]).refused();
    assert!(error.contains("registry.example/team/a is blocked") && error.contains("line 1"), "{error}");
}

#[test]
fn a_short_name_means_what_the_machine_says() {
    let Some(home) = Home::new() else { return };
    let (empty, full, [first, second]) = two();
    let search = format!("unqualified-search-registries = [\"{first}\", \"{second}\"]\n");
    home.write(".config/containers/registries.conf", &search);
    home.stat("a:1", &[]).ok();
    assert!(!empty.requests_to("/v2/a/manifests/1").is_empty(), "the first is asked first");

    home.write(".config/containers/registries.conf", &format!("{search}short-name-mode = \"enforcing\"\n"));
    let before = full.requests().len();
    let error = home.stat("a:1", &[]).refused();
    assert!(error.contains(&format!("{first}/a:1, {second}/a:1")) && error.contains("enforcing"), "{error}");
    assert_eq!(full.requests().len(), before);
    home.stat(&format!("{second}/a:1"), &[]).ok();

    home.write(".config/containers/registries.conf", &format!("{search}[aliases]\n\"app\" = \"{second}/a\"\n"));
    home.stat("app:1", &[]).ok();
    let error = home.stat("b:1", &[]).refused();
    assert!(error.contains(&format!("{first}/b:1: ")) && error.contains(&format!("{second}/b:1: ")), "{error}");
}

#[test]
fn a_policy_that_rejects_is_heard_before_a_registry_is() {
    let Some(home) = Home::new() else { return };
    let (_empty, full, [_, second]) = two();
    let accept = "[{\"type\":\"insecureAcceptAnything\"}]";
    for (demand, said) in [("reject", "says \"reject\""), ("sigstoreSigned", "demands a signature (sigstoreSigned)")] {
        let policy = format!(
            "{{\"default\":{accept},\"transports\":{{\"docker\":{{\"{second}/a\":[{{\"type\":\"{demand}\"}}]}}}}}}"
        );
        home.write(".config/containers/policy.json", &policy);
        let error = home.stat(&format!("{second}/a:1"), &[]).refused();
        assert!(error.contains(said) && error.contains(&format!("docker: {second}/a")), "{error}");
        assert!(error.contains("policy.json"), "{error}");
    }
    assert_eq!(full.requests().len(), 0, "no request before the policy allows it");
    home.write(".config/containers/policy.json", &format!("{{\"default\":{accept}}}"));
    home.stat(&format!("{second}/a:1"), &[]).ok();
}

#[test]
fn a_directory_of_hosts_decides_alone() {
    let Some(home) = Home::new() else { return };
    let (empty, full, [first, second]) = two();
    home.write(".config/containers/registries.conf", "[[registry]]\nlocation = \"registry.example\"\nblocked = true\n");
    let hosts = format!(
        "server = \"http://{second}\"\n[host.\"http://{first}\"]\ncapabilities = [\"pull\", \"resolve\"]\n[host.\"http://{first}\".header]\n\
         X-Mark = \"one\"\n"
    );
    home.write("hosts/registry.example/hosts.toml", &hosts);
    let dir = home.dir.join("hosts").display().to_string();
    home.stat("registry.example/a:1", &["--hosts-dir", &dir]).ok();
    let asked = empty.requests_to("/v2/a/manifests/1");
    assert!(asked.iter().all(|request| request.header("x-mark") == Some("one")) && !asked.is_empty());
    assert!(full.requests().iter().all(|request| request.header("x-mark").is_none()), "headers are for their host");

    home.write("hosts/registry.example/hosts.toml", "server = 1\n");
    let error = home.stat("registry.example/a:1", &["--hosts-dir", &dir]).refused();
    assert!(error.contains("hosts.toml, line 1: server: "), "{error}");
    let nowhere = home.stat("registry.example/a:1", &["--hosts-dir", "/nowhere"]);
    assert!(nowhere.stderr.contains("--hosts-dir"), "{nowhere}");
    assert!(Path::new(&dir).exists());
}
