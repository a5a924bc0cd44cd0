//! Tables of contents that a hostile image may bring, through registry and mount assembly: the layer is refused and the entry named.
//! The parser's own tests (src/index/tests/hostile.rs) have many more.

use crfs::blob::Digest;

use crate::contents::{Lab, open};
use crate::image::estargz_with;

/// Entries of a TOC, and what the message must name besides the layer.
fn rows() -> Vec<(String, &'static str)> {
    let digest = Digest::of(b"x").to_string();
    let reg = |name: &str, more: &str| {
        format!(r#"{{"name":"{name}","type":"reg","size":1,"digest":"{digest}","offset":1{more}}}"#)
    };
    let dir = |name: &str| format!(r#"{{"name":"{name}","type":"dir","mode":493}}"#);
    let link = |name: &str, target: &str| format!(r#"{{"name":"{name}","type":"hardlink","linkName":"{target}"}}"#);
    let chunks = |second: u32| {
        let first = reg("split", r#","chunkSize":1"#).replace(r#""size":1"#, r#""size":4"#);
        format!(
            r#"{first},{{"name":"split","type":"chunk","offset":2,"chunkOffset":{second},"chunkSize":2,"chunkDigest":"{digest}"}}"#
        )
    };
    vec![
        (reg("../evil", ""), "evil"),
        (reg("a/../../evil", ""), "evil"),
        (reg("nul\\u0000", ""), "nul"),
        (reg(&"n".repeat(256), ""), "nnnn"),
        (reg(&["deep"; 900].join("/"), ""), "deep"),
        (format!("{},{}", link("round", "about"), link("about", "round")), "about"),
        (format!("{},{}", dir("dir"), link("link", "dir")), "link"),
        (reg("negative", "").replace(r#""size":1"#, r#""size":-1"#), "negative"),
        (reg("overflow", "").replace(r#""size":1"#, r#""size":99999999999999999999"#), "overflow"),
        (reg("outside", "").replace(r#""offset":1"#, r#""offset":9999999"#), "outside"),
        (chunks(2), "split"),
        (chunks(0), "split"),
        (r#"{"name":"socket","type":"socket"}"#.to_owned(), "socket"),
        (r#"{"name":"stray","type":"chunk","offset":1,"chunkSize":1}"#.to_owned(), "stray"),
        (reg("bomb", r#","innerOffset":99999999999"#), "bomb"),
    ]
}

#[tokio::test]
async fn an_entry_that_no_honest_layer_has_is_refused_by_name() {
    let lab = Lab::empty().await;
    for (entries, name) in rows() {
        let layer = estargz_with(b"payload", format!(r#"{{"version":1,"entries":[{entries}]}}"#).as_bytes());
        lab.push(&layer);
        let Err(error) = open(&lab.options()).await else { panic!("{name}: it opened: {entries:.200}") };
        let text = error.chain();
        assert!(text.contains(name) && text.contains(&layer.digest().to_string()), "{name}: {text:.400}");
    }
}

#[tokio::test]
async fn what_is_no_table_of_contents_is_refused() {
    let lab = Lab::empty().await;
    let deep = format!(r#"{{"entries":[{{"name":"x","type":"dir","x":{}1{}}}]}}"#, "[".repeat(9999), "]".repeat(9999));
    let whole = r#"{"version":1,"entries":[{"name":"a","type":"dir"}]}"#;
    let texts =
        ["", "[]", "null", "{}", "\u{0}", r#"{"entries":7}"#, &deep, &whole[..whole.len() - 1], &format!("{whole}x")];
    for text in texts {
        let layer = estargz_with(b"payload", text.as_bytes());
        lab.push(&layer);
        let Err(error) = open(&lab.options()).await else { panic!("it opened: {text:.200}") };
        assert!(error.chain().contains(&layer.digest().to_string()), "{}", error.chain());
    }
}
