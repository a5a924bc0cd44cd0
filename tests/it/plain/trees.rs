//! Layers whose names lead somewhere else than they say.

use crfs::blob::Digest;

use super::{COMPRESSORS, Lab};
use crate::image::{plain, ramp, tar_entry, tar_header};

fn dir(name: &str) -> Vec<u8> {
    tar_header(b'5', name, "", 0)
}

fn symlink(name: &str, target: &str) -> Vec<u8> {
    tar_header(b'2', name, target, 0)
}

fn hard_link(name: &str, target: &str) -> Vec<u8> {
    tar_header(b'1', name, target, 0)
}

fn file(name: &str, content: &[u8]) -> Vec<u8> {
    tar_entry(name, content.len(), content)
}

/// The names in a directory of the image that these layers are.
async fn names(lab: &Lab, layers: &[Vec<Vec<u8>>], dirs: &[&str]) -> Vec<String> {
    let tars: Vec<_> = layers.iter().map(|entries| [entries.concat(), vec![0; 1024]].concat()).collect();
    let blobs: Vec<_> = tars.iter().zip(COMPRESSORS.iter().cycle()).map(|(tar, (_, by))| plain(by(tar))).collect();
    let diff_ids: Vec<_> = tars.iter().map(|tar| Digest::of(tar)).collect();
    lab.push_image("a", &blobs.iter().collect::<Vec<_>>(), &diff_ids);
    let opened = lab.open().await;
    dirs.iter().map(|dir| opened.names(dir).join(" ")).collect()
}

#[tokio::test]
async fn an_entry_below_a_symlink_of_its_layer_is_where_that_leads() {
    let lab = Lab::new().await;
    let (new, linked) = (ramp(5000, 1), ramp(700, 2));
    let layer = vec![
        dir("usr/lib"),
        symlink("lib", "usr/lib"),
        file("lib/new", &new),
        symlink("usr/up", "../../../lib"),
        file("usr/up/sub/linked", &linked),
        hard_link("hard", "lib/sub/linked"),
    ];
    let names = names(&lab, &[layer], &["", "usr/lib", "usr/lib/sub"]).await;
    assert_eq!(names, ["hard lib usr", "new sub", "linked"]);
    let opened = lab.open().await;
    assert_eq!(opened.read("usr/lib/new", 0, 9999).await.unwrap(), new);
    assert_eq!(opened.read("hard", 0, 9999).await.unwrap(), linked);
}

#[tokio::test]
async fn a_symlink_of_a_lower_layer_is_hidden_by_what_is_below_its_name() {
    let lab = Lab::new().await;
    let lower = vec![file("usr/lib/old", b"old"), symlink("lib", "usr/lib")];
    let names = names(&lab, &[lower, vec![file("lib/new", b"new")]], &["lib", "usr/lib"]).await;
    assert_eq!(names, ["new", "old"]);
}

#[tokio::test]
async fn whiteouts_below_what_is_no_directory_hide_nothing_else() {
    let lab = Lab::new().await;
    let lower = || vec![file("d/in", b"in"), file("keep/in", b"in"), file("gone/in", b"in")];
    let whiteouts = ["d/.wh.in", "d/.wh..wh..opq", "d/sub/.wh.in"].map(|name| file(name, b""));
    for (thing, is_first) in [
        (file("d", b"a file"), true),
        (file("d", b"a file"), false),
        (symlink("d", "keep"), true),
        (symlink("d", "keep"), false),
        (hard_link("d", "keep/in"), true),
    ] {
        let upper = if is_first { [&[thing][..], &whiteouts].concat() } else { [&whiteouts[..], &[thing]].concat() };
        let gone = vec![file(".wh.gone", b""), file("gone/.wh.in", b"")];
        let names = names(&lab, &[lower(), [upper, gone].concat()], &["", "keep"]).await;
        assert_eq!(names, ["d keep", "in"]);
    }
}
