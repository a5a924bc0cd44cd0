//! What the released binary takes of memory for layers that are small and would take much: it refuses them by name within its limit, and serves what
//! else there is.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::evil::{Evil, estargz, zstd_chunked};
use crate::faults::memory;
use crate::image::{File, Layer, config, manifest_with, ramp};
use crate::lying::{OCI_MANIFEST, Registry};
use crate::support::command::Finished;
use crate::support::lab::CRFS;
use crate::support::lies::Liar;
use crate::support::podman::Store;
use crate::support::{Lab, run};

/// What `--memory-limit` is where nobody says, and what a process needs besides.
const LIMIT: u64 = 256 << 20;
const BASE: u64 = 48 << 20;

/// Takes more than that, by a fifth.
const TAKEN: usize = 300 << 20;

/// Runs crfs; at its end comes what it, or a server that it started and waited for, has taken.
const PEAK: &str = "import resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, file=sys.stderr)
sys.exit(status)";

fn measured(arguments: &[&str]) -> (Finished, u64) {
    let mut finished = run(Command::new("python3").args(["-c", PEAK, CRFS]).args(arguments));
    let (said, peak) = finished.stderr.rsplit_once("peak ").unwrap_or_else(|| panic!("{finished}"));
    let (said, peak) = (said.to_owned(), peak.trim().parse().unwrap());
    finished.stderr = said;
    (finished, peak)
}

fn assert_names(said: &str, layer: &Layer) {
    assert!(said.contains(&layer.digest().to_string()) && said.contains("--memory-limit"), "{said}");
}

fn evil() -> Layer {
    estargz(Evil::Xattrs, Evil::Xattrs.entries(TAKEN))
}

fn honest() -> Layer {
    crate::image::estargz(&[File { name: "file", content: ramp(50_000, 1) }], 1 << 20)
}

/// An image that podman would take. What its config says of a layer with a table of contents is nobody's to check.
fn push(liar: &Liar, layer: &Layer) -> String {
    let config = config(&[layer.digest()]);
    let registry: &Registry = liar;
    registry.push("a", "1", OCI_MANIFEST, &manifest_with(&config, &[layer]), &[&layer.blob, &config]);
    format!("{}/a:1", registry.host())
}

#[test]
fn no_command_takes_more_than_its_limit() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let (evil, links) = (evil(), zstd_chunked(Evil::Links, Evil::Links.entries(TAKEN)));
    let (cache, dir) = (lab.fresh("cache"), lab.fresh("mount"));
    let (cache, dir) = (cache.to_str().unwrap(), dir.to_str().unwrap());
    for (layer, what) in [(&evil, "xattrs"), (&links, "links")] {
        let image = liar.push(&[layer]);
        for (command, rest) in [("ls", vec![]), ("cat", vec!["/file"]), ("mount", vec![dir])] {
            let arguments = [&[command, "--cache-dir", cache, &image][..], &rest].concat();
            let (finished, peak) = measured(&arguments);
            assert_names(&finished.refused(), layer);
            assert!(peak < LIMIT + BASE, "{what}: {command} took {} MiB", peak >> 20);
        }
    }
    // Six are no more than one, and an image with an honest one below is refused as well.
    let honest = honest();
    let small: Vec<_> = (1..7).map(|more| estargz(Evil::Xattrs, Evil::Xattrs.entries(TAKEN / 5) + more)).collect();
    let image = liar.push(&[&[&honest][..], &small.iter().collect::<Vec<_>>()].concat());
    let (finished, peak) = measured(&["ls", "--cache-dir", cache, &image]);
    assert!(finished.refused().contains("--memory-limit"));
    assert!(peak < LIMIT + BASE, "six layers took {} MiB", peak >> 20);
}

/// So many directories that gathering them takes nearly all: then the layer is laid out.
#[test]
fn the_last_step_of_an_index_takes_no_more_than_those_before_it() {
    let Some(lab) = Lab::new() else { return };
    let (liar, cache) = (Liar::new(), lab.fresh("cache"));
    let image = liar.push(&[&zstd_chunked(Evil::Implied, Evil::Implied.entries(140 << 20))]);
    let (finished, peak) = measured(&["ls", "--cache-dir", cache.to_str().unwrap(), &image]);
    assert!(peak > LIMIT * 3 / 4 && peak < LIMIT + BASE, "{} MiB: {finished}", peak >> 20);
}

#[test]
fn a_store_refuses_such_an_image_and_serves_the_others() {
    let Some(lab) = Lab::new() else { return };
    let Some(store) = Store::new(&lab) else { return };
    let (evil, honest) = (evil(), honest());
    let liars = [Liar::new(), Liar::new()];
    let [bad, good] = [push(&liars[0], &evil), push(&liars[1], &honest)];
    let pid = store.pid();
    for _ in 0..3 {
        assert_names(&store.crfs("add", &["--name", "localhost/bad:1", &bad]).refused(), &evil);
    }
    store.add("localhost/good:1", &good);
    assert!(memory(pid, "VmHWM") << 10 < LIMIT + BASE, "{} MiB", memory(pid, "VmHWM") >> 10);
    assert!(memory(pid, "VmRSS") << 10 < BASE, "{} MiB stay", memory(pid, "VmRSS") >> 10);
    let list = store.list();
    assert_eq!(list.len(), 1);
    assert_eq!(list[0]["served"], true);
    assert!(fs::exists(Path::new("/proc").join(pid.to_string())).unwrap());
}
