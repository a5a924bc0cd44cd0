//! What `inspect`, `ls`, `cat` and `stat` print.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::ffi::OsStrExt;

use super::args::{CatArgs, ImageArgs, IndexArgs, InspectArgs, LsArgs, StatArgs};
use super::environment::Environment;
use super::format::{self, Side, printable, table};
use super::progress::with_progress;
use super::{Failure, endpoints, json, options, print};
use crate::fs::view::LastSymlink;
use crate::image::escape;
use crate::image::indexes::{self, Indexed, IndexedLayer};
use crate::image::inspect::{self as inspection, DiffIds, IndexFrom, Inspection, LayerInspection};
use crate::image::look::{Listing, Look, Node};

pub(super) fn inspect(args: InspectArgs, environment: &Environment) -> Result<(), Failure> {
    let options = options::image(args.image, environment)?;
    let inspection = with_progress(|report| inspection::inspect(&options, report))?;
    Ok(print(&if args.json { json(&inspection)? } else { inspection_text(&inspection, args.bandwidth) })?)
}

pub(super) fn index(args: IndexArgs, environment: &Environment) -> Result<(), Failure> {
    let options = options::image(args.image, environment)?;
    let indexed = with_progress(|report| indexes::index(&options, args.output.as_deref(), report))?;
    Ok(print(&if args.json { json(&indexed)? } else { indexed_text(&indexed) })?)
}

pub(super) fn ls(args: LsArgs, environment: &Environment) -> Result<(), Failure> {
    // As ls(1) does: a link that is named is shown itself in a long listing.
    let last = if args.long { LastSymlink::Keep } else { LastSymlink::Follow };
    let listings = look(args.image, environment)?.list(args.path.as_bytes(), args.recursive, last)?;
    let text = match args.json {
        true => listings.iter().flat_map(|listing| &listing.rows).map(json).collect::<Result<String, _>>()?,
        false => listings_text(&listings, args.long, args.recursive),
    };
    Ok(print(&text)?)
}

pub(super) fn cat(args: CatArgs, environment: &Environment) -> Result<(), Failure> {
    Ok(look(args.image, environment)?.cat(args.path.as_bytes(), &mut io::stdout().lock())?)
}

pub(super) fn stat(args: StatArgs, environment: &Environment) -> Result<(), Failure> {
    let node = look(args.image, environment)?.stat(args.path.as_bytes())?;
    Ok(print(&if args.json { json(&node)? } else { node_text(&node) })?)
}

fn look(args: ImageArgs, environment: &Environment) -> Result<Look, Failure> {
    let options = options::image(args, environment)?;
    Ok(with_progress(|report| Look::open(&options, report))?)
}

fn indexed_text(indexed: &Indexed) -> String {
    let titles = ["LAYER", "DIGEST", "SIZE", "FORMAT", "ENTRIES", "UNITS", "INDEX", "SHARE"].map(str::to_owned);
    let rows = indexed.layers.iter().enumerate().map(|(number, layer)| indexed_row(number, layer));
    let rows: Vec<_> = std::iter::once(titles.to_vec()).chain(rows).collect();
    use Side::{Left, Right};
    table(&[Right, Left, Right, Left, Right, Right, Right, Right], &rows)
}

fn indexed_row(number: usize, layer: &IndexedLayer) -> Vec<String> {
    let share = |size: u64| format!("{:.2} %", size as f64 * 100.0 / layer.size.max(1) as f64);
    vec![
        number.to_string(),
        layer.digest.to_string(),
        format::bytes(layer.size),
        layer.format.clone(),
        layer.entries.to_string(),
        layer.units.to_string(),
        layer.index_size.map_or_else(|| "its own".to_owned(), format::bytes),
        layer.index_size.map_or_else(|| "-".to_owned(), share),
    ]
}

/// `bandwidth`: bytes per second.
fn inspection_text(inspection: &Inspection, bandwidth: u64) -> String {
    let mut head = vec![
        vec!["image".to_owned(), printable(&inspection.image)],
        vec!["digest".to_owned(), inspection.digest.to_string()],
        vec!["platform".to_owned(), printable(inspection.platform.as_deref().unwrap_or("not said"))],
        vec!["config".to_owned(), config_text(inspection.config).to_owned()],
        vec!["mount".to_owned(), wait_text(inspection.wait, bandwidth)],
    ];
    head.extend(endpoints::lines(&inspection.endpoints).into_iter().map(|line| vec!["endpoint".to_owned(), line]));
    let titles =
        ["LAYER", "DIGEST", "SIZE", "FORMAT", "LAZY", "INDEX", "ENTRIES", "UNITS", "WAIT", "WHY"].map(str::to_owned);
    let rows = inspection.layers.iter().enumerate().map(|(number, layer)| layer_row(number, layer));
    let rows: Vec<_> = std::iter::once(titles.to_vec()).chain(rows).collect();
    use Side::{Left, Right};
    let sides = [Right, Left, Right, Left, Left, Left, Right, Right, Right, Left];
    let mut text = format!("{}\n{}", table(&[Left, Left], &head), table(&sides, &rows));
    let advice: BTreeSet<&String> = inspection.layers.iter().filter_map(|layer| layer.advice.as_ref()).collect();
    for (number, advice) in advice.into_iter().enumerate() {
        text += &format!("{}to make it better: {}\n", if number == 0 { "\n" } else { "" }, printable(advice));
    }
    text
}

fn config_text(config: DiffIds) -> &'static str {
    match config {
        DiffIds::Complete => "has the diffID of each layer",
        DiffIds::Incomplete => "lacks diffIDs: nothing is compared with those layers' tars (docs/trust.md)",
        DiffIds::NoConfig => "cannot be had or read: no layer's tar is compared with a diffID (docs/trust.md)",
    }
}

fn wait_text(wait: u64, bandwidth: u64) -> String {
    let seconds = wait as f64 / bandwidth.max(1) as f64;
    format!("fetches {} before it is ready: {seconds:.1} s at {}/s", format::bytes(wait), format::bytes(bandwidth))
}

fn layer_row(number: usize, layer: &LayerInspection) -> Vec<String> {
    let index = layer.index.as_ref();
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    vec![
        number.to_string(),
        layer.digest.to_string(),
        format::bytes(layer.size),
        or_none(index.map(|index| index.format.clone())),
        if layer.lazy { "yes" } else { "no" }.to_owned(),
        match layer.index_from {
            IndexFrom::Toc => "toc",
            IndexFrom::Own => "own",
            IndexFrom::Soci => "soci",
            IndexFrom::None => "-",
        }
        .to_owned(),
        or_none(index.map(|index| index.entries.to_string())),
        or_none(index.map(|index| index.units.to_string())),
        format::bytes(layer.wait),
        printable(&layer.reason),
    ]
}

fn listings_text(listings: &[Listing], long: bool, recursive: bool) -> String {
    use Side::{Left, Right};
    let sides: &[Side] = if long { &[Left, Right, Right, Right, Right, Left, Left] } else { &[Left] };
    let texts = listings.iter().map(|listing| {
        let heading = listing.dir.as_ref().filter(|_| recursive).map(|dir| format!("{}:\n", escape(dir)));
        let rows: Vec<_> = listing.rows.iter().map(|node| row(node, listing.dir.is_some(), long)).collect();
        heading.unwrap_or_default() + &table(sides, &rows)
    });
    texts.collect::<Vec<_>>().join("\n")
}

fn row(node: &Node, in_dir: bool, long: bool) -> Vec<String> {
    let last = node.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let name = escape(if in_dir { last } else { &node.path });
    if !long {
        return vec![name];
    }
    let size = match node.device {
        Some((major, minor)) => format!("{major}, {minor}"),
        None => node.size.to_string(),
    };
    vec![
        format::mode(kind_letter(node.kind), node.mode),
        node.nlink.to_string(),
        node.uid.to_string(),
        node.gid.to_string(),
        size,
        format::time(node.mtime),
        with_target(name, node),
    ]
}

fn with_target(name: String, node: &Node) -> String {
    match &node.target {
        Some(target) => format!("{name} -> {}", escape(target)),
        None => name,
    }
}

fn kind_letter(kind: &str) -> char {
    match kind {
        "file" => '-',
        "symlink" => 'l',
        "fifo" => 'p',
        // directory, char-device, block-device
        other => other.chars().next().unwrap_or('?'),
    }
}

fn node_text(node: &Node) -> String {
    let device = node.device.map(|(major, minor)| format!("  Device type: {major},{minor}")).unwrap_or_default();
    let mut lines = vec![
        format!("    File: {}", with_target(escape(&node.path), node)),
        format!("    Size: {}  {}{device}", node.size, node.kind),
        format!("   Inode: {}  Links: {}", node.inode, node.nlink),
        format!(
            "  Access: ({:04o}/{})  Uid: {}  Gid: {}",
            node.mode,
            format::mode(kind_letter(node.kind), node.mode),
            node.uid,
            node.gid
        ),
        format!("  Modify: {}.{:09} +0000", format::time(node.mtime), node.mtime_nanos),
    ];
    lines.extend(node.layer.map(|layer| format!("   Layer: {layer}")));
    lines.extend(node.xattrs.iter().map(|(name, value)| format!("   Xattr: {name} = {value} (base64)")));
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::blob::Digest;
    use crate::image::inspect::IndexInspection;

    fn node(path: &[u8]) -> Node {
        Node {
            path: path.to_vec(),
            path_base64: None,
            kind: "file",
            inode: 7,
            mode: 0o4755,
            nlink: 2,
            uid: 0,
            gid: 5,
            size: 1234,
            mtime: -1,
            mtime_nanos: 5,
            device: None,
            target: None,
            layer: Some(Digest::of(b"")),
            xattrs: BTreeMap::new(),
        }
    }

    fn symlink(path: &[u8]) -> Node {
        Node { kind: "symlink", mode: 0o777, target: Some(b"to\x1b".to_vec()), layer: None, size: 3, ..node(path) }
    }

    #[test]
    fn listings_are_those_of_ls() {
        let device = Node { kind: "char-device", mode: 0o666, device: Some((1, 3)), layer: None, ..node(b"/d/null") };
        let listing = |dir: &[u8], rows| Listing { dir: Some(dir.to_vec()), rows };
        let listings = [listing(b"/d", vec![node(b"/d/f"), symlink(b"/d/s\xff"), device]), listing(b"/d/e", vec![])];
        let long = "/d:\n\
            -rwsr-xr-x  2  0  5  1234  1969-12-31 23:59:59  f\n\
            lrwxrwxrwx  2  0  5     3  1969-12-31 23:59:59  s\\xff -> to\\x1b\n\
            crw-rw-rw-  2  0  5  1, 3  1969-12-31 23:59:59  null\n\
            \n/d/e:\n";
        assert_eq!(listings_text(&listings, true, true), long);
        assert_eq!(listings_text(&listings[..1], false, false), "f\ns\\xff\nnull\n");
        let alone = Listing { dir: None, rows: vec![node(b"/d/f")] };
        assert_eq!(listings_text(&[alone], false, false), "/d/f\n");
    }

    #[test]
    fn a_file_has_the_essentials_of_stat() {
        let text = node_text(&symlink(b"/l"));
        for part in ["File: /l -> to\\x1b\n", "Inode: 7  Links: 2\n", "(0777/lrwxrwxrwx)", "23:59:59.000000005 +0000"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(node_text(&node(b"/f")).contains("Layer: sha256:"));
    }

    #[test]
    fn a_file_in_json_has_the_fields_that_the_help_names() {
        let mut odd = node(b"/f\xff");
        odd.path_base64 = Some("L2b/".into());
        let digest = Digest::of(b"");
        let expected = format!(
            "{{\"path\":\"/f\u{fffd}\",\"path_base64\":\"L2b/\",\"type\":\"file\",\"inode\":7,\"mode\":\"4755\",\
             \"nlink\":2,\"uid\":0,\"gid\":5,\"size\":1234,\"mtime\":-1,\"mtime_nanos\":5,\"layer\":\"{digest}\"}}\n"
        );
        assert_eq!(json(&odd).unwrap(), expected);
    }

    #[test]
    fn layers_that_cannot_be_opened_are_shown_with_the_reason() {
        let digest = Digest::of(b"");
        let index =
            IndexInspection { format: "estargz".into(), entries: 5, units: 4, toc_size: 300, contents_size: 4096 };
        let layer = |index: Option<IndexInspection>, reason: &str| LayerInspection {
            digest,
            size: 2048,
            media_type: "m".into(),
            usable: index.is_some(),
            lazy: index.is_some(),
            index_from: if index.is_some() { IndexFrom::Toc } else { IndexFrom::None },
            requests: 1,
            wait: 512,
            reason: reason.into(),
            advice: index.is_none().then(|| "convert it".into()),
            podman_asks: true,
            since: None,
            index,
        };
        let layers = vec![layer(Some(index), "named"), layer(None, "plain\n gzip")];
        let inspection = Inspection {
            image: "i".into(),
            digest,
            platform: None,
            config: DiffIds::NoConfig,
            wait: 1024,
            endpoints: Vec::new(),
            layers,
        };
        let text = inspection_text(&inspection, 2048);
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        let digest = digest.to_string();
        assert_eq!(rows[2], ["platform", "not", "said"]);
        assert!(text.contains("fetches 1.0 KiB before it is ready: 0.5 s at 2.0 KiB/s"), "{text}");
        assert_eq!(rows[7], ["0", &digest, "2.0", "KiB", "estargz", "yes", "toc", "5", "4", "512", "B", "named"]);
        assert_eq!(rows[8], ["1", &digest, "2.0", "KiB", "-", "no", "-", "-", "-", "512", "B", "plain\\n", "gzip"]);
        assert!(text.ends_with("\n\nto make it better: convert it\n"), "{text}");
        let value: serde_json::Value = serde_json::from_str(&json(&inspection).unwrap()).unwrap();
        assert_eq!((&value["layers"][0]["toc_size"], &value["layers"][1].get("format")), (&300.into(), &None));
    }
}
