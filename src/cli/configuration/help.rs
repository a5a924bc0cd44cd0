//! What `crfs config --help` says after the options. Lines are broken here, for 80 columns.

macro_rules! exit_help {
    () => {
        "
Exit status:
  0  the configuration is good
  1  something is wrong: it is named on standard error
  2  wrong usage"
    };
}

pub(in crate::cli) const CONFIG: &str = concat!(
    "\
Examples:
  crfs config show

`crfs config show --help` says what can be configured, and where.
",
    exit_help!()
);

pub(in crate::cli) const SHOW: &str = concat!(
    "\
Examples:
  crfs config show
  CRFS_CACHE_SIZE=2G crfs config show | grep cache-size
  crfs config show --json | jq '.values[] | select(.origin == \"file\")'

The options below \"Configurable options\" in the help of each command have a key:
the name of the option. Later ones of these win over earlier ones:
  /etc/crfs/config.toml         for all users
  /etc/crfs/config.d/*.toml     the same, by name
  ~/.config/crfs/config.toml    or $XDG_CONFIG_HOME/crfs/config.toml
  CRFS_...                      such as CRFS_CACHE_DIR for --cache-dir
  options on the command line
A key at the top of a file holds for all commands that have the option, and in a
table such as [mount] or [store.serve] for one. docs/configuration.md has more,
and contrib/config.toml all keys.

Fields of --json:
  files                   an array of path and found, in the order of reading
  values                  an array of
    key, commands         the option, and the commands that have this of it
    value                 null where it is not set; an array of an option that
                          may be given several times
    origin                file, variable or default
    file, line, variable  null where it is not from there
  unused_variables        CRFS_... that crfs does not know: variable, and meant,
                          null where it looks like none
  faults                  what is wrong, as standard error says it
",
    exit_help!()
);

#[cfg(test)]
mod tests {
    #[test]
    fn lines_fit_a_terminal() {
        let lines = super::CONFIG.lines().chain(super::SHOW.lines());
        lines.for_each(|line| assert!(line.chars().count() <= 80, "{line}"));
    }
}
