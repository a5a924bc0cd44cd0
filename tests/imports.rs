//! The floors of the house: docs/design.md has two tables, and the code keeps to them. What a part of src/ may use of the others, and who may name what
//! else. And no two files use each other, but for a parent and its child.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What a row of the first table says in the place of parts, of one that all others may use.
const BY_ALL: &str = "all may use it";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).into_iter().flatten();
    entries.flat_map(|entry| sources(&entry.unwrap().path())).collect()
}

/// All files of src/ that are no tests, by their names, with their code.
fn code() -> BTreeMap<String, String> {
    let name = |file: &Path| file.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    let files = sources(&root().join("src")).into_iter().map(|file| (name(&file), fs::read_to_string(file).unwrap()));
    let files = files.filter(|(name, _)| name.ends_with(".rs") && !name.contains("test"));
    files.map(|(name, text)| (name, without_comments(&text))).collect()
}

/// Tests at its end are left out, too: they may use what they like.
fn without_comments(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

/// The rows of a table of docs/design.md that starts with such a head, its cells trimmed.
fn table(head: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(root().join("docs/design.md")).unwrap();
    let rows = text.lines().skip_while(|line| *line != head).skip(2).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect();
    let rows: Vec<Vec<String>> = rows.map(cells).collect();
    assert!(!rows.is_empty(), "docs/design.md has no table {head}");
    rows
}

/// Each part of src/, and what it may use besides itself.
fn floors() -> BTreeMap<String, BTreeSet<String>> {
    let rows = table("| folder | what it does | may use |");
    let name =
        |row: &[String]| row[0].trim_start_matches("src/").trim_end_matches('/').trim_end_matches(".rs").to_owned();
    let by_all: BTreeSet<String> = rows.iter().filter(|row| row[2].contains(BY_ALL)).map(|row| name(row)).collect();
    let may_use = |row: &[String]| -> BTreeSet<String> {
        let named = row[2].split(", ").filter(|_| !row[2].contains(BY_ALL)).map(str::to_owned);
        named.chain(by_all.clone()).collect()
    };
    rows.iter().map(|row| (name(row), may_use(row))).collect()
}

/// The paths that code names by `crate::`, `super::` and `self::`, groups in braces taken apart.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|before| before.is_alphanumeric() || before == '_' || before == ':') {
                continue;
            }
            let first = start.trim_end_matches(':').to_owned();
            tree(&code[at + start.len()..], vec![first], &mut found);
        }
    }
    found
}

/// One tree of a `use`, or a path; gives what is left behind it.
fn tree<'a>(mut code: &'a str, mut path: Vec<String>, found: &mut Vec<Vec<String>>) -> &'a str {
    loop {
        code = code.trim_start();
        if let Some(inner) = code.strip_prefix('{') {
            code = inner;
            loop {
                code = tree(code, path.clone(), found).trim_start();
                match code.strip_prefix(',') {
                    Some(rest) if !rest.trim_start().starts_with('}') => code = rest,
                    rest => return rest.unwrap_or(code).trim_start().trim_start_matches('}'),
                }
            }
        }
        let end = code.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(code.len());
        path.push(code[..end].to_owned());
        code = &code[end..];
        match code.strip_prefix("::") {
            Some(rest) if rest.starts_with(|c: char| c.is_alphabetic() || c == '_' || c == '{') => code = rest,
            _ => {
                found.push(path);
                return code.trim_start_matches(|c: char| c != ',' && c != '}' && c != ';');
            }
        }
    }
}

/// The module that a file is.
fn module(file: &str) -> Vec<String> {
    let path = file.trim_start_matches("src/").trim_end_matches(".rs");
    let mut parts: Vec<String> = path.split('/').map(str::to_owned).collect();
    if ["mod", "lib", "main"].contains(&parts.last().unwrap().as_str()) {
        parts.pop();
    }
    parts
}

/// The modules that a file names.
fn used(file: &str, code: &str, modules: &BTreeSet<Vec<String>>) -> BTreeSet<Vec<String>> {
    let own = module(file);
    let absolute = |path: Vec<String>| -> Vec<String> {
        let above = path.iter().take_while(|part| *part == "super").count();
        match path[0].as_str() {
            "crate" => path[1..].to_vec(),
            "self" => [&own[..], &path[1..]].concat(),
            _ => [&own[..own.len().saturating_sub(above)], &path[above..]].concat(),
        }
    };
    let known =
        |path: Vec<String>| (1..=path.len()).rev().map(|len| path[..len].to_vec()).find(|path| modules.contains(path));
    paths(code).into_iter().map(absolute).filter_map(known).filter(|module| *module != own).collect()
}

#[test]
fn imports_go_down() {
    let floors = floors();
    for (file, code) in code() {
        let part = module(&file).first().cloned().unwrap_or_default();
        // The crate itself, and its main.
        let Some(allowed) = floors.get(&part) else {
            assert!(part.is_empty(), "{file}: docs/design.md has no row for src/{part}");
            continue;
        };
        let parts = paths(&code).into_iter().filter(|path| path[0] == "crate").map(|path| path[1].clone());
        for used in parts.filter(|used| floors.contains_key(used) && *used != part) {
            assert!(allowed.contains(&used), "{file}: by docs/design.md, {part} may not use {used}");
        }
    }
}

/// A parent may hold what its children need, and knows them.
#[test]
fn no_two_files_use_each_other() {
    let code = code();
    let modules: BTreeSet<_> = code.keys().map(|file| module(file)).collect();
    let related = |one: &[String], other: &[String]| one.starts_with(other) || other.starts_with(one);
    let uses: BTreeMap<_, BTreeSet<_>> = code
        .iter()
        .map(|(file, code)| {
            let own = module(file);
            let used = used(file, code, &modules).into_iter().filter(|other| !related(&own, other)).collect();
            (own, used)
        })
        .collect();
    let circles: Vec<_> = uses.keys().filter(|start| reaches(start, &uses)).map(|module| module.join("/")).collect();
    assert!(circles.is_empty(), "these files are in circles: {circles:?}");
}

/// Whether what a module uses uses it.
fn reaches(start: &[String], uses: &BTreeMap<Vec<String>, BTreeSet<Vec<String>>>) -> bool {
    let mut seen = BTreeSet::new();
    let mut waiting: Vec<_> = uses[start].iter().collect();
    while let Some(module) = waiting.pop() {
        if module == start {
            return true;
        }
        if seen.insert(module) {
            waiting.extend(uses.get(module).into_iter().flatten());
        }
    }
    false
}

#[test]
fn what_is_elsewhere_is_named_where_it_belongs() {
    let code = code();
    for row in table("| name | where it may stand |") {
        let (name, places): (_, Vec<_>) = (&row[0], row[1].split(", ").collect());
        let is_named = |code: &str| code.match_indices(name.as_str()).any(|(at, _)| is_word(code, at, name.len()));
        for (file, _) in code.iter().filter(|(_, code)| is_named(code)) {
            let allowed = places.iter().any(|place| file == place || file.starts_with(&format!("{place}/")));
            assert!(allowed, "{file} names {name}: by docs/design.md, that may stand in {}", row[1]);
        }
        for place in places {
            assert!(code.keys().any(|file| file.starts_with(place)), "docs/design.md: there is no {place}");
        }
    }
}

fn is_word(code: &str, at: usize, len: usize) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let is_path = code[at..at + len].ends_with(':');
    !code[..at].ends_with(is_part) && (is_path || !code[at + len..].starts_with(is_part))
}

/// Cargo.toml names Rust 1.85, Debian 13's. Chains of `let` came with 1.88, and a newer compiler says nothing of them.
#[test]
fn the_oldest_compiler_understands_it() {
    for (file, code) in code() {
        let chain = code.lines().find(|line| line.trim_start().starts_with("&& let ") || line.contains(" && let "));
        assert_eq!(chain, None, "{file}: `if ... && let` needs Rust 1.88");
    }
}

#[test]
fn paths_are_seen() {
    let seen = |code: &str| -> Vec<String> { paths(code).into_iter().map(|path| path.join("::")).collect() };
    let several =
        "use crate::{\n    blob,\n    fs::{self, tree::Tree},\n    index as other,\n};\nfn f() { crate::cli::run() }";
    assert_eq!(
        seen(several),
        ["crate::blob", "crate::fs::self", "crate::fs::tree::Tree", "crate::index", "crate::cli::run"]
    );
    assert_eq!(seen("use super::super::a::B; pub(crate) fn f(x: self::c::D) {}"), ["super::super::a::B", "self::c::D"]);
    let modules = ["a", "a/b", "a/c"].map(|module| module.split('/').map(str::to_owned).collect()).into();
    let used = used("src/a/b.rs", "use super::c::D; use crate::a::b::E;", &modules);
    assert_eq!(used.into_iter().map(|module| module.join("/")).collect::<Vec<_>>(), ["a/c"]);
    assert_eq!(without_comments("a // crate::b\n#[cfg(test)]\nmod tests {crate::c"), "a ");
}
