//! Man pages and completions, from the definition of the command line.

use std::io;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use super::args::Cli;
use crate::image::Error;

/// Writes crfs.1, crfs-mount.1 and so on into a directory, and mount.crfs.8 and umount.crfs.8.
pub(super) fn man(dir: &Path) -> Result<(), Error> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", dir.display()));
    let written = clap_mangen::generate_to(visible(), dir);
    let helpers =
        written.and_then(|()| super::helper::definitions().into_iter().try_for_each(|helper| page(helper, dir)));
    helpers.map_err(|error| Error::Output { source: named(error) })
}

/// That of a program for the administrator.
fn page(helper: clap::Command, dir: &Path) -> io::Result<()> {
    let mut text = Vec::new();
    let name = format!("{}.8", helper.get_name());
    clap_mangen::Man::new(helper).section("8").render(&mut text)?;
    std::fs::write(dir.join(name), text)
}

/// Prints the completions for a shell.
pub(super) fn completions(shell: Shell) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut visible(), "crfs", &mut script);
    let script = String::from_utf8(script).map_err(|error| Error::Output { source: io::Error::other(error) })?;
    super::print(&script)
}

/// The definition without what crfs starts by itself, which neither generator leaves out everywhere.
fn visible() -> clap::Command {
    let whole = Cli::command();
    let shown = whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    let bare = clap::Command::new("crfs").disable_help_subcommand(true).subcommands(shown).args(whole.get_arguments());
    let about = whole.get_about().cloned().unwrap_or_default();
    let long = whole.get_long_about().cloned().unwrap_or_default();
    let after = whole.get_after_long_help().cloned().unwrap_or_default();
    bare.version(env!("CARGO_PKG_VERSION"))
        .about(about)
        .long_about(long)
        .after_long_help(after)
        .subcommand_required(true)
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    /// What a person may type, below every command.
    fn commands(of: &clap::Command, name: &str) -> Vec<String> {
        let shown = of.get_subcommands().filter(|command| !command.is_hide_set());
        let below = shown.flat_map(|command| commands(command, &format!("{name}-{}", command.get_name())));
        std::iter::once(name.to_owned()).chain(below).collect()
    }

    #[test]
    fn every_command_has_a_manual_page_with_its_options() {
        let dir = tempfile::tempdir().unwrap();
        man(dir.path()).unwrap();
        let mut pages: Vec<String> =
            dir.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        pages.sort();
        let mut expected: Vec<String> =
            commands(&Cli::command(), "crfs").iter().map(|name| format!("{name}.1")).collect();
        expected.extend(["mount.crfs.8".to_owned(), "umount.crfs.8".to_owned()]);
        expected.sort();
        assert_eq!(pages, expected);
        let mount = std::fs::read_to_string(dir.path().join("crfs-mount.1")).unwrap();
        assert!(mount.contains("whole\\-layer\\-below") && mount.contains("Exit status"), "{mount}");
        let missing = man(&dir.path().join("missing")).unwrap_err().chain();
        assert!(missing.contains("/missing: "), "{missing}");
    }

    #[test]
    fn every_shell_completes_what_a_person_may_type_and_nothing_else() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut visible(), "crfs", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("umount") && script.contains("whole-layer-below"), "{shell}");
            assert!(!script.contains(crate::podman::WORKER), "{shell}");
        }
    }
}
