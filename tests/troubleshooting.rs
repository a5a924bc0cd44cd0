//! docs/TROUBLESHOOTING.md has every message of an error, and every warning of the log; and none that crfs does not have any more.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What begins a message in the sources. The last text in the brackets of a log line is its message.
const ERROR: &str = "#[error(";
const LOGGED: [&str; 2] = ["tracing::warn!(", "tracing::error!("];

/// Behind this heading of the document, each line that is indented by four is a message.
const HEADING: &str = "\n## Messages\n";

fn sources(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).into_iter().flatten();
    entries.flat_map(|entry| sources(&entry.unwrap().path())).collect()
}

/// The text of a string literal, and what follows it; `None`: there is none.
fn literal(code: &str) -> Option<(String, &str)> {
    let mut rest = code.strip_prefix('"')?.chars();
    let mut text = String::new();
    loop {
        match rest.next()? {
            '"' => return Some((text, rest.as_str())),
            '\\' => match rest.next()? {
                '\n' => rest = rest.as_str().trim_start().chars(),
                'n' => text.push('\n'),
                escaped => text.push(escaped),
            },
            letter => text.push(letter),
        }
    }
}

/// The messages of the `#[error("...")]` of a source. Those that are `transparent` have another's.
fn errors(code: &str) -> Vec<String> {
    let texts = code.split(ERROR).skip(1).map(str::trim_start).filter(|rest| !rest.starts_with("transparent)"));
    let text = |rest: &str| literal(rest).unwrap_or_else(|| panic!("no text of an error: {:?}", rest.lines().next())).0;
    texts.map(text).collect()
}

/// The messages of the log lines of a source.
fn logged(code: &str) -> Vec<String> {
    let calls = LOGGED.iter().flat_map(|call| code.split(call).skip(1));
    calls
        .map(|rest| last_literal(rest).unwrap_or_else(|| panic!("no text to log: {:?}", rest.lines().next())))
        .collect()
}

/// The last text before the bracket is closed that was opened before `code`.
fn last_literal(code: &str) -> Option<String> {
    let (mut rest, mut depth, mut last) = (code.chars(), 1, None);
    while depth > 0 {
        if let Some((text, behind)) = literal(rest.as_str()) {
            (last, rest) = (Some(text), behind.chars());
            continue;
        }
        match rest.next()? {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
    }
    last
}

/// A message with `{}` for each placeholder, however it is named, and for several in a row.
fn normal(message: &str) -> String {
    let mut text = String::new();
    for (number, part) in message.split('{').enumerate() {
        let behind = if number == 0 { part } else { part.split_once('}').map_or(part, |(_, behind)| behind) };
        if number > 0 && !text.ends_with("{}") {
            text.push_str("{}");
        }
        text.push_str(behind);
    }
    text
}

/// Whether it says anything of its own. Others pass on what another error says.
fn has_words(message: &str) -> bool {
    normal(message).chars().any(char::is_alphabetic)
}

/// All messages of the sources, with the file that has them.
fn messages(code: &BTreeMap<String, String>, of: impl Fn(&str) -> Vec<String>) -> BTreeMap<String, String> {
    let all = code.iter().flat_map(|(file, code)| of(code).into_iter().map(|text| (text, file.clone())));
    all.filter(|(text, _)| has_words(text)).collect()
}

/// The messages of the document.
fn documented(document: &str) -> Vec<String> {
    let (_, part) = document.split_once(HEADING).unwrap_or_else(|| panic!("no heading {HEADING:?}"));
    part.lines().filter_map(|line| line.strip_prefix("    ")).map(str::to_owned).collect()
}

fn missing(messages: &BTreeMap<String, String>, document: &str) -> Vec<String> {
    let there: BTreeSet<String> = documented(document).iter().map(|text| normal(text)).collect();
    let missing = messages.iter().filter(|(text, _)| !there.contains(&normal(text)));
    missing.map(|(text, file)| format!("{file}: {text}")).collect()
}

/// Messages of the document that are none of `messages`, and are not made by hand elsewhere in the sources: their words are in no source.
fn outdated(messages: &BTreeMap<String, String>, code: &BTreeMap<String, String>, document: &str) -> Vec<String> {
    let known: BTreeSet<String> = messages.keys().map(|text| normal(text)).collect();
    let all: String = code.values().map(|code| unfolded(code)).collect();
    let is_by_hand =
        |text: &str| normal(text).split("{}").filter(|part| has_words(part)).all(|part| all.contains(part));
    let is_known = |text: &String| known.contains(&normal(text)) || is_by_hand(text);
    documented(document).into_iter().filter(|text| !is_known(text)).collect()
}

/// A source as if each text in it was on one line, without escapes.
fn unfolded(code: &str) -> String {
    let mut lines = code.split("\\\n");
    let first = lines.next().unwrap_or_default().to_owned();
    lines.fold(first, |text, line| text + line.trim_start()).replace("\\\"", "\"")
}

fn read() -> (BTreeMap<String, String>, String) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let name = |path: &Path| path.strip_prefix(root).unwrap().display().to_string();
    let code = sources(&root.join("src")).iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect();
    (code, fs::read_to_string(root.join("docs/TROUBLESHOOTING.md")).unwrap())
}

fn none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "docs/TROUBLESHOOTING.md {what}:\n{}", found.join("\n"));
}

#[test]
fn every_message_of_an_error_is_documented() {
    let (code, document) = read();
    let messages = messages(&code, errors);
    assert!(messages.len() > 200, "only {} messages were found", messages.len());
    none("lacks these messages of errors", &missing(&messages, &document));
}

#[test]
fn every_warning_of_the_log_is_documented() {
    let (code, document) = read();
    let messages = messages(&code, logged);
    assert!(messages.len() > 50, "only {} messages were found", messages.len());
    none("lacks these messages of the log", &missing(&messages, &document));
}

#[test]
fn no_message_is_documented_that_there_is_no_more() {
    let (code, document) = read();
    let messages = messages(&code, |code| [errors(code), logged(code)].concat());
    none("has messages that no source has", &outdated(&messages, &code, &document));
}

/// A source with each form that a message may have.
const SOURCE: &str = r##"
    #[error("{path:?}: it has no \"name\" {0}{more}", path = path.display())]
    #[error(transparent)]
    #[error(
        "layer {layer}: one line, \
         and another"
    )]
    #[error("{message}")]
    tracing::warn!(a = f("x"), %b, "it (once) failed");
    tracing::error!(
        c,
        "it failed again"
    );
    println!("said {} by hand", name);
"##;

#[test]
fn messages_are_found_in_all_their_forms() {
    let texts = ["{path:?}: it has no \"name\" {0}{more}", "layer {layer}: one line, and another", "{message}"];
    assert_eq!(errors(SOURCE), texts);
    assert_eq!(logged(SOURCE), ["it (once) failed", "it failed again"]);
    assert_eq!(normal(texts[0]), "{}: it has no \"name\" {}");
    assert!(!has_words("{path}: {what}") && has_words("the {0}"));
}

#[test]
fn what_is_missing_or_outdated_is_named() {
    let code = BTreeMap::from([("src/a.rs".to_owned(), SOURCE.to_owned())]);
    let messages = messages(&code, |code| [errors(code), logged(code)].concat());
    let all = "x\n## Messages\n\n    {}: it has no \"name\" {number}\n    layer {}: one line, and another\n\
        \n    it (once) failed\n    it failed again\n    said {name} by hand\n";
    assert_eq!((missing(&messages, all), outdated(&messages, &code, all)), (vec![], vec![]));
    let less = all.replace("    it failed again\n", "    it failed for the third time\n");
    assert_eq!(missing(&messages, &less), ["src/a.rs: it failed again"]);
    assert_eq!(outdated(&messages, &code, &less), ["it failed for the third time"]);
    let other = all.replace("one line", "one word");
    assert_eq!(missing(&messages, &other), ["src/a.rs: layer {layer}: one line, and another"]);
    assert_eq!(outdated(&messages, &code, &other), ["layer {}: one word, and another"]);
}
