//! `crfs doctor`.

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;

use serde::Serialize;

use super::args::DoctorArgs;
use super::environment::Environment;
use super::format::printable;
use super::options::UsageError;
use super::{Failure, command, complain, json, options, print, store};
use crate::doctor::{self, Checked, Setting, Verdict, apart};
use crate::errors::chain;
use crate::image::options::ImageOptions;

/// What `crfs doctor --json` prints.
#[derive(Serialize)]
struct Report<'a> {
    verdict: Verdict,
    version: &'static str,
    findings: &'a [Checked],
}

/// Whether this is `crfs doctor`, and not its help, which a terminal's width and colours are for.
pub(super) fn is_asked(arguments: &[OsString]) -> bool {
    let typed = || arguments.iter().skip(1).map(|word| word.as_encoded_bytes());
    let first = typed().find(|word| !word.starts_with(b"-"));
    first == Some(b"doctor".as_slice()) && !typed().any(|word| matches!(word, b"--help" | b"-h" | b"--version" | b"-V"))
}

/// The command itself: its child looks, and this process asks no filesystem that might hold it.
pub(super) fn in_parent(arguments: Vec<OsString>) -> u8 {
    let told = match apart::run_apart(arguments.iter().skip(1).cloned()) {
        Ok(told) => told,
        Err(error) if error.kind() == ErrorKind::TimedOut => {
            complain(&format!(
                "doctor: {error}; what its configuration or the cache is on does not answer: see `findmnt`, and the server behind it"
            ));
            return 1;
        }
        // Where there can be no child, or no /proc.
        Err(_) => return command(arguments),
    };
    // Where nobody can be told, the exit status has to do.
    let _untold = io::stderr().lock().write_all(&told.errors);
    let mut output = io::stdout().lock();
    let _untold = output.write_all(&told.output).and_then(|()| output.flush());
    told.status
}

/// The child: says to its parent when all is said, since it may not end.
pub(super) fn in_child(look: impl FnOnce() -> u8) -> u8 {
    let status = look();
    let mark = apart::mark(status);
    let _parent_is_gone = io::stderr().lock().write_all(&mark);
    let mut output = io::stdout().lock();
    let _parent_is_gone = output.write_all(&mark).and_then(|()| output.flush());
    status
}

pub(super) fn doctor(args: &DoctorArgs, environment: &Environment) -> Result<(), Failure> {
    let findings = doctor::examine(setting(args, environment)?);
    let verdict = findings.iter().map(|found| found.finding.verdict).max().unwrap_or(Verdict::Ok);
    let report = Report { verdict, version: env!("CARGO_PKG_VERSION"), findings: &findings };
    print(&if args.json { json(&report)? } else { text(&findings, args.all) })?;
    if verdict == Verdict::Problem { Err(Failure::Reported) } else { Ok(()) }
}

fn setting(args: &DoctorArgs, environment: &Environment) -> Result<Setting, Failure> {
    let image = args.image.as_ref().map(|image| asked(image, args, environment)).transpose()?;
    let (auth_files, auth_is_named) = auth_files(args, environment)?;
    Ok(Setting {
        uid: environment.uid,
        path: Environment::path(),
        auth_files,
        auth_is_named,
        places: options::places(&args.access, environment)?,
        cache_dir: options::cache_dir(args.cache.cache_dir.as_deref(), environment)?,
        cache_size: args.cache.cache_size,
        state_dirs: environment.state_dirs(),
        store: options::store(&args.place, environment).map_err(|error| chain(&error)),
        storage_conf: store::storage_conf(environment),
        proxies: Environment::proxies(),
        image,
    })
}

/// The image, if what was typed is one; or why it cannot be asked for, which is for the check to tell.
fn asked(image: &OsStr, args: &DoctorArgs, environment: &Environment) -> Result<Result<ImageOptions, String>, Failure> {
    match options::source(image, &args.access, &args.cache, environment) {
        Ok(options) => Ok(Ok(options)),
        Err(Failure::Failed(error)) => Ok(Err(error.chain())),
        Err(Failure::Usage(error @ UsageError::AuthFile { .. })) => Ok(Err(chain(&error))),
        Err(failure) => Err(failure),
    }
}

/// The credential files, and whether they were named. One that is named and not there is for the check to tell.
fn auth_files(args: &DoctorArgs, environment: &Environment) -> Result<(Vec<PathBuf>, bool), Failure> {
    let named = args.access.authfile.is_some();
    match options::auth_files(args.access.authfile.clone(), environment) {
        Ok(files) => Ok((files, named)),
        Err(UsageError::AuthFile { path, .. }) => Ok((vec![path], named)),
        Err(error) => Err(error.into()),
    }
}

fn text(findings: &[Checked], all: bool) -> String {
    let is_shown = |found: &&Checked| all || found.finding.verdict > Verdict::Ok;
    let shown: String = findings.iter().filter(is_shown).map(lines).collect();
    let mut well: Vec<&str> = findings.iter().map(|found| found.check).collect();
    well.dedup();
    let is_well =
        |check: &&str| findings.iter().all(|found| found.check != *check || found.finding.verdict == Verdict::Ok);
    let well: Vec<_> = well.into_iter().filter(is_well).collect();
    match well.as_slice() {
        _ if all => shown,
        [] => shown,
        well => format!("{shown}ok       {}\n", well.join(", ")),
    }
}

fn lines(Checked { check, finding }: &Checked) -> String {
    let name = match finding.verdict {
        Verdict::Ok => "ok",
        Verdict::Note => "note",
        Verdict::Problem => "problem",
    };
    let more = |(title, text): (&str, &Option<String>)| {
        text.as_ref().map(|text| format!("         {title}: {}\n", printable(text))).unwrap_or_default()
    };
    let rest: String = [("so", &finding.meaning), ("do", &finding.advice)].into_iter().map(more).collect();
    format!("{name:<8} {check}: {}\n{rest}", printable(&finding.found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Finding;

    fn checked(check: &'static str, verdict: Verdict) -> Checked {
        let told = (verdict > Verdict::Ok).then(|| "x\n".to_owned());
        Checked { check, finding: Finding { verdict, found: "f".into(), meaning: told.clone(), advice: told } }
    }

    #[test]
    fn doctor_is_known_by_its_name() {
        let is_asked = |line: &str| is_asked(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        for line in ["crfs doctor", "crfs -v --quiet doctor --json", "crfs doctor doctor"] {
            assert!(is_asked(line), "{line}");
        }
        for line in ["doctor", "crfs doctor --help", "crfs help doctor", "crfs mount doctor"] {
            assert!(!is_asked(line), "{line}");
        }
    }

    #[test]
    fn what_is_well_is_told_in_one_line() {
        let found = [
            checked("a", Verdict::Ok),
            checked("a", Verdict::Ok),
            checked("b", Verdict::Ok),
            checked("b", Verdict::Note),
            checked("c", Verdict::Problem),
        ];
        let note = "note     b: f\n         so: x\\n\n         do: x\\n\n";
        let problem = note.replace("note     b", "problem  c");
        assert_eq!(text(&found, false), format!("{note}{problem}ok       a\n"));
        assert_eq!(text(&found[..3], false), "ok       a, b\n");
        assert!(text(&found, true).starts_with("ok       a: f\nok       a: f\nok       b: f\nnote     b: f\n"));
    }
}
