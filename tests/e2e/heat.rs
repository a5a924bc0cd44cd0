//! `crfs heat`: what it tells and draws is what readers have read and the registry has sent.

use std::fs::{self, File as Opened};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::image::{File, noise, plain, tar};
use crate::keeper::kill_for_good;
use crate::support::lab::CRFS;
use crate::support::lies::Liar;
use crate::support::{Lab, run, until};

const MIB: usize = 1 << 20;

fn told(arguments: &[&str]) -> Value {
    let text = run(Command::new(CRFS).args(["heat", "--json"]).args(arguments)).ok();
    serde_json::from_str(&text).unwrap()
}

fn bytes(of: &Value, fate: &str) -> u64 {
    of["bytes"][fate].as_u64().unwrap()
}

/// All of them together are the bytes of the files, whatever became of them.
fn all(of: &Value) -> u64 {
    of["bytes"].as_object().unwrap().values().filter_map(Value::as_u64).sum()
}

#[test]
fn what_was_read_fetched_and_left_is_told_and_drawn() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let files = ["a", "b", "c"].map(|name| File { name, content: noise(3 * MIB, u64::from(name.as_bytes()[0])) });
    let layer = plain(tar(&files));
    let (image, cache) = (liar.push(&[&layer, &layer]), lab.fresh("cache"));
    let cache_dir = ["--cache-dir", cache.to_str().unwrap()];
    let in_cache = |what: &[&str]| told(&[what, &cache_dir, &[&image]].concat());

    let nothing = in_cache(&[]);
    assert_eq!((&nothing["time"], &nothing["layers"][0]["contents"]), (&Value::Null, &Value::Null), "{nothing}");
    lab.crfs(&[&["index"], &cache_dir[..], &[&image]].concat()).ok();
    let whole = 9 * MIB as u64;
    assert_eq!(bytes(&in_cache(&[]), "idle"), whole);
    lab.crfs(&[&["cache", "clear", "--contents"], &cache_dir[..]].concat()).ok();
    assert_eq!(bytes(&in_cache(&[]), "missing"), whole);

    let mount = lab.mount_with(&image, &cache, &["--prefetch", "none"]);
    let dir = mount.dir().to_str().unwrap().to_owned();
    let before = told(&[&dir]);
    assert_eq!((bytes(&before, "missing"), before["layers"].as_array().unwrap().len()), (whole, 1), "{before}");
    assert!(before["time"]["ready"].is_u64() && before["mount"]["told"] == true, "{before}");

    let sent = liar.sent(&layer.digest());
    let mut part = vec![0; 4096];
    Opened::open(mount.path("b")).unwrap().read_exact_at(&mut part, 0).unwrap();
    // What was sent may not have been looked at yet.
    let after = until("all that was sent", || {
        let after = told(&[&dir]);
        let came = liar.sent(&layer.digest()) - sent;
        // It comes as it is, but for the headers.
        (came > 0 && (bytes(&after, "demanded") + bytes(&after, "unused")).abs_diff(came) < 16 << 10).then_some(after)
    });
    let (demanded, unused) = (bytes(&after, "demanded"), bytes(&after, "unused"));
    assert!(demanded >= 4096 && bytes(&after, "missing") > 0 && all(&after) == whole, "{demanded} {unused}");
    let bins = after["time"]["bins"].as_array().unwrap();
    let sum = |field: &str| bins.iter().map(|bin| bin[field].as_u64().unwrap()).sum::<u64>();
    assert!(sum("waited") > 0 && sum("waited") <= sum("needed"), "{after}");
    let cells = after["layers"][0]["cells"].as_array().unwrap();
    assert!(cells.iter().any(|cell| cell["waited"] == true && cell["needed"].is_u64() && cell["came"].is_u64()));

    fs::read(mount.path("b")).unwrap();
    let read = told(&[&dir]);
    assert_eq!(
        (bytes(&read, "unused").min(unused), bytes(&read, "demanded") >= demanded),
        (bytes(&read, "unused"), true),
        "{read}"
    );

    let file = lab.fresh("heat").join("heat.svg");
    run(Command::new(CRFS).args(["heat", "--svg"]).arg(&file).arg(&dir)).ok();
    assert_xml(&fs::read_to_string(&file).unwrap());
    let both = run(Command::new(CRFS).args(["heat", "--svg", "-", "--json", &dir]));
    assert_eq!(both.status, Some(2), "one of them alone may be standard output: {both}");
    assert_xml(&run(Command::new(CRFS).args(["heat", "--svg", "-", &dir])).ok());
    assert_eq!(run(Command::new(CRFS).args(["heat", &dir])).status, Some(2), "there is nothing to show it by");
    let nowhere = run(Command::new(CRFS).args(["heat", "--svg", "/nowhere/x.svg", &dir])).refused();
    assert!(nowhere.contains("/nowhere/x.svg cannot be written"), "{nowhere}");

    kill_for_good(&mount);
    let gone = run(Command::new(CRFS).args(["heat", "--json", &dir])).refused();
    assert!(gone.contains("does not say what became of its bytes") && gone.contains(&dir), "{gone}");
}

/// As another program reads it.
#[track_caller]
fn assert_xml(text: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    let script =
        "import sys, xml.dom.minidom as x; r = x.parse(sys.argv[1]).documentElement; assert r.tagName == 'svg'";
    run(Command::new("python3").args(["-c", script]).arg(Path::new(file.path()))).ok();
}
