//! The configuration of registries that this machine has: registries.conf, short names, policy.json, and hosts.toml of containerd.

use std::path::Path;

use super::{Finding, Setting};
use crate::registry::{Places, Survey, survey};

/// Where containerd's documents have its config_path.
const CONTAINERD: &str = "/etc/containerd/certs.d";

struct Facts {
    survey: Survey,
    /// Faults of containerd's directory, where crfs was not told to use it.
    containerd: Option<Vec<String>>,
}

pub(super) fn look(setting: &Setting) -> Vec<Finding> {
    let containerd = Path::new(CONTAINERD);
    let is_asked = setting.places.hosts_dir.is_some();
    let faults = || {
        let places = Places { hosts_dir: Some(containerd.to_owned()), ..Places::default() };
        survey(&places).errors.iter().map(ToString::to_string).collect()
    };
    judge(&Facts { survey: survey(&setting.places), containerd: (!is_asked && containerd.is_dir()).then(faults) })
}

fn judge(facts: &Facts) -> Vec<Finding> {
    let Survey { registries, mirrors, errors, refusal } = &facts.survey;
    let mut found: Vec<_> = errors
        .iter()
        .map(|error| {
            Finding::problem(
                error.to_string(),
                "crfs asks no registry while it cannot be understood, as podman does",
                "mend the line that is named; `man 5 containers-registries.conf`, containers-policy.json",
            )
        })
        .collect();
    if errors.is_empty() {
        found.push(Finding::ok(format!(
            "the configuration of registries can be read: {registries} registries and {mirrors} mirrors are named"
        )));
    }
    found.extend(refusal.as_ref().map(|refusal| {
        Finding::note(
            format!("policy.json lets no image through that it does not name: {refusal}"),
            "crfs refuses those images; it checks no signatures",
            "name the registries to be trusted below transports, docker, in policy.json",
        )
    }));
    found.extend(facts.containerd.as_deref().map(judge_containerd));
    found
}

fn judge_containerd(faults: &[String]) -> Finding {
    match faults {
        [] => Finding::ok(format!("{CONTAINERD} can be used: --hosts-dir {CONTAINERD}")),
        faults => Finding::note(
            format!("{CONTAINERD} cannot be used: {}", faults.join("; ")),
            "containerd may pass over it; crfs reads it with --hosts-dir alone, and refuses it then",
            "mend the line that is named",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::Verdict::{Note, Ok as Good, Problem};
    use super::*;

    fn judged(places: &Places) -> Vec<Finding> {
        judge(&Facts { survey: survey(places), containerd: None })
    }

    #[test]
    fn faults_are_told_with_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places { system: Some(dir.path().to_owned()), ..Places::default() };
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(judged(&places)[0].verdict, Good);
        write("registries.conf", "[[registry]]\nlocation = \"a.io\"\n[[registry.mirror]]\nlocation = \"m.io\"\n");
        assert!(judged(&places)[0].found.ends_with("1 registries and 1 mirrors are named"), "{:?}", judged(&places));
        write("registries.conf", "[[registry]]\nlocation = 7\n");
        let found = judged(&places);
        assert!(found[0].verdict == Problem && found[0].found.contains("registries.conf, line 2"), "{found:?}");
        write("registries.conf", "");
        write("policy.json", "{");
        let found = judged(&places);
        assert!(found[0].verdict == Problem && found[0].found.contains("policy.json, line 1"), "{found:?}");
        write("policy.json", r#"{"default":[{"type":"reject"}]}"#);
        let found = judged(&places);
        assert_eq!([found[0].verdict, found[1].verdict], [Good, Note]);
    }

    #[test]
    fn each_hosts_toml_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places { hosts_dir: Some(dir.path().to_owned()), ..Places::default() };
        for (name, text) in [("a.io", "server = \"https://a.io\"\n"), ("b.io", "server = \n"), ("c.io", "= 1\n")] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("hosts.toml"), text).unwrap();
        }
        let found = survey(&places).errors;
        let told: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert!(
            told.len() == 2 && told[0].contains("b.io/hosts.toml") && told[1].contains("c.io/hosts.toml"),
            "{told:?}"
        );
        assert_eq!(judge_containerd(&told).verdict, Note);
        assert_eq!(judge_containerd(&[]).verdict, Good);
    }
}
