//! `crfs store`: podman's additional image store.

use std::ffi::OsString;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::args::{
    StoreAddArgs, StoreAuthHelperArgs, StoreCommand, StoreConfigArgs, StoreLsArgs, StorePrefetchArg, StoreRmArgs,
    StoreServeArgs, StoreShareArgs, StoreWorkerArgs,
};
use super::environment::Environment;
use super::format::{self, Side, printable, table};
use super::options::PATIENCE;
use super::progress::with_progress;
use super::{Failure, complain, complaint, json, options, print};
use crate::keeper::Words;
use crate::podman::commands::{self, Listing};
use crate::podman::places::{self, Person};
use crate::podman::{self, LayerOptions, Ready, ServeOptions};
use crate::registry::Given;
use crate::serve::Keeper;
use crate::serve::options::LogOptions;
use crate::sys::{limit, outside};

/// Digits of an id, as podman shows it.
const ID: usize = 12;

pub(super) fn store(command: StoreCommand, log: &LogOptions, environment: &Environment) -> Result<(), Failure> {
    match command {
        StoreCommand::Serve(args) => serve(&args, log, environment),
        StoreCommand::Add(args) => add(&args, environment),
        StoreCommand::Rm(args) => remove(args, environment),
        StoreCommand::Ls(args) => list(&args, environment),
        StoreCommand::Config(args) => config(&args, environment),
        StoreCommand::Share(args) => share(args, environment),
        StoreCommand::AuthHelper(args) => take_credentials(&args, environment),
    }
}

/// By this name crfs is the helper, which podman starts without arguments.
const AUTH_HELPER: &str = "crfs-auth-helper";

/// The arguments as they would be typed.
pub(super) fn named(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let is_helper = arguments.first().is_some_and(|name| Path::new(name).file_name() == Some(AUTH_HELPER.as_ref()));
    if is_helper {
        arguments.splice(..1, ["crfs", "store", "auth-helper"].map(OsString::from));
    }
    arguments
}

/// More than podman hands over.
const LONGEST_CREDENTIALS: u64 = 1 << 20;

/// podman is to go on where it has handed over something else: what it cannot do is told to it alone.
fn take_credentials(args: &StoreAuthHelperArgs, environment: &Environment) -> Result<(), Failure> {
    let paths = options::store(&args.place, environment)?;
    let mut text = Vec::new();
    let read = io::stdin().take(LONGEST_CREDENTIALS).read_to_end(&mut text);
    let given = read.ok().and_then(|_| Given::read(&text)).ok_or(options::UsageError::NoCredentials)?;
    Ok(commands::give_credentials(&paths, given)?)
}

fn serve(args: &StoreServeArgs, log: &LogOptions, environment: &Environment) -> Result<(), Failure> {
    let options = ServeOptions {
        paths: options::store(&args.place, environment)?,
        cache_dir: options::cache_dir(args.cache.cache_dir.as_deref(), environment)?,
        cache_size: args.cache.cache_size,
        podman: podman_roots(environment)?,
        guesses: args.prefetch != StorePrefetchArg::None,
        // Containers are of many users. In a user namespace of one's own that is allowed, too.
        allow_other: nix::unistd::geteuid().is_root(),
        metrics_listen: options::listen(args.metrics_listen.as_ref())?,
        layers: args.layers.then(|| layer_options(args, environment)).transpose()?,
        log: log.clone(),
    };
    let never = podman::become_keeper(&options, Environment::manager().passed_on.len())?;
    match never {}
}

/// Which image it is podman says.
fn layer_options(args: &StoreServeArgs, environment: &Environment) -> Result<LayerOptions, Failure> {
    let any = OsString::from("localhost/any:latest");
    let source = options::source(&any, &args.access, &args.cache, environment)?;
    Ok(LayerOptions { source, deadline: args.mount_deadline })
}

/// A worker, as its keeper starts it.
pub(super) fn worker(args: &StoreWorkerArgs) -> Result<(), Failure> {
    let keeper = Keeper::inherited(args.keeper, None)?;
    let served = match args.resume {
        true => podman::resume(&keeper),
        false => podman::serve(&keeper, |ready| ready_words(&args.root, ready)),
    };
    let Err(error) = served else { return Ok(()) };
    keeper.failed(error.chain());
    // Its keeper tries again, and says what is wrong to whoever asks.
    Err(if args.resume { Failure::Reported } else { error.into() })
}

/// What its keeper is to say.
fn ready_words(root: &Path, ready: &Ready) -> Words {
    let not_served = match ready.not_served {
        0 => String::new(),
        count => format!(", {count} of them not yet (`crfs store ls` says why)"),
    };
    let line = complaint(&format!("serving {}: {} images{not_served}", root.display(), ready.images));
    Words { output: String::new(), error: line + "\n" }
}

/// What a keeper does at its end. `arguments`: its own. Of a store, what is mounted and nobody serves is taken away.
pub(super) fn clearing(arguments: &[OsString]) -> impl FnOnce() + use<> {
    let root = match arguments {
        [_, worker, _, root, ..] if worker == podman::WORKER => Some(PathBuf::from(root)),
        _ => None,
    };
    move || {
        if let Some(Err(error)) = root.as_deref().map(podman::clear_away) {
            complain(&error.chain());
        }
    }
}

fn add(args: &StoreAddArgs, environment: &Environment) -> Result<(), Failure> {
    if args.name.is_some() && args.images.len() > 1 {
        return Err(options::UsageError::NameOfSeveral.into());
    }
    let paths = options::store(&args.place, environment)?;
    let sources = args.images.iter().map(|image| options::source(image, &args.access, &args.cache, environment));
    let mut added = Vec::new();
    for source in sources.collect::<Result<Vec<_>, _>>()? {
        let listings = with_progress(|report| commands::add(&paths, source, args.name.clone(), args.full, report))?;
        if !args.json {
            print(&listings.iter().map(|image| added_line(image, args.full)).collect::<String>())?;
        }
        added.extend(listings);
    }
    if args.json {
        print(&json(&added)?)?;
    }
    Ok(())
}

/// `full`: podman is to be able to push it.
fn added_line(image: &Listing, full: bool) -> String {
    let layers = if image.layers == 1 { "1 layer".to_owned() } else { format!("{} layers", image.layers) };
    let name = image.names.last().map_or("<none>", String::as_str);
    let waits = if image.served { "" } else { "; not served yet: `crfs store serve`" };
    let stays = if full && !image.pushable {
        "; podman cannot push all of its layers; why stands in the log of the server, or above"
    } else {
        ""
    };
    format::printable(&format!("{name}: {}, {layers}{waits}{stays}", short(&image.id))) + "\n"
}

fn short(id: &str) -> &str {
    id.get(..ID).unwrap_or(id)
}

fn remove(args: StoreRmArgs, environment: &Environment) -> Result<(), Failure> {
    let paths = options::store(&args.place, environment)?;
    let named = args.podman_root.iter().map(|root| options::podman_root(root)).collect::<Result<Vec<_>, _>>()?;
    let roots = podman_roots(environment)?.into_iter().chain(named).collect();
    let removed = with_progress(|report| commands::remove(&paths, args.images, roots, report))?;
    if args.json {
        print(&json(&removed)?)?;
    }
    Ok(())
}

fn share(args: StoreShareArgs, environment: &Environment) -> Result<(), Failure> {
    let paths = options::store(&args.place, environment)?;
    let dir = paths.of_user(&args.user);
    commands::share(&paths, args.user, args.stop)?;
    if !args.stop {
        print(&format!("{}\n", printable(&dir.display().to_string())))?;
    }
    Ok(())
}

fn list(args: &StoreLsArgs, environment: &Environment) -> Result<(), Failure> {
    let images = commands::list(&options::store(&args.place, environment)?)?;
    Ok(print(&if args.json { json(&images)? } else { list_text(&images) })?)
}

fn list_text(images: &[Listing]) -> String {
    let titles = ["IMAGE ID", "NAME", "LAYERS", "SIZE", "CREATED", "STATE"].map(str::to_owned);
    let rows = images.iter().flat_map(|image| {
        let unnamed = ["<none>".to_owned()];
        let names = if image.names.is_empty() { &unnamed[..] } else { &image.names };
        names.iter().map(|name| row(image, name)).collect::<Vec<_>>()
    });
    let rows: Vec<_> = std::iter::once(titles.to_vec()).chain(rows).collect();
    use Side::{Left, Right};
    table(&[Left, Left, Right, Right, Left, Left], &rows)
}

fn row(image: &Listing, name: &str) -> Vec<String> {
    let state = match (image.served, &image.problem) {
        (true, _) => "served".to_owned(),
        (false, Some(problem)) => printable(problem),
        (false, None) => "not served".to_owned(),
    };
    vec![
        short(&image.id).to_owned(),
        printable(name),
        image.layers.to_string(),
        format::bytes(image.size),
        image.created.get(..10).unwrap_or_default().to_owned(),
        state,
    ]
}

/// The file that podman reads, by default (containers-storage.conf(5)).
pub(super) fn storage_conf(environment: &Environment) -> PathBuf {
    match &environment.storage_conf {
        Some(path) => path.clone(),
        None if environment.uid == 0 => "/etc/containers/storage.conf".into(),
        None => environment.config_dir().join("containers/storage.conf"),
    }
}

/// Where podman may keep what it has itself.
fn podman_roots(environment: &Environment) -> Result<Vec<PathBuf>, Failure> {
    let uid = environment.uid;
    let user = nix::unistd::User::from_uid(uid.into()).ok().flatten();
    Ok(places::of_person(Person {
        uid,
        name: user.map_or_else(String::new, |user| user.name),
        home: environment.home.clone().unwrap_or_else(|| "/".into()),
        data: environment.data_dir(),
        conf: storage_conf(environment),
    })?)
}

fn config(args: &StoreConfigArgs, environment: &Environment) -> Result<(), Failure> {
    let paths = options::store(&args.place, environment)?;
    let list = if args.layers { List::layers(&paths.layers()) } else { List::images(&paths.root) };
    let text = config_text(&list, &storage_conf(environment), &podman_version(), environment.uid);
    Ok(print(&(text + &if args.layers { helper_text(args, &paths.root) } else { String::new() }))?)
}

/// How podman hands over credentials, as comments: that stands in another file.
fn helper_text(args: &StoreConfigArgs, root: &Path) -> String {
    let program = std::fs::read_link("/proc/self/exe").unwrap_or_else(|_| "crfs".into());
    let is_usual = args.place.root.is_none() && args.place.state.is_none();
    let state = args.place.state.as_ref().map(|state| format!(" --state {}", shell(state))).unwrap_or_default();
    let how = match is_usual {
        true => format!("a symbolic link: ln -s {} {HELPER_PLACE}", shell(&program)),
        false => format!(
            "a script of two lines:\n#   #!/bin/sh\n#   exec {} store auth-helper --root {}{state}",
            shell(&program),
            shell(root)
        ),
    };
    format!(
        "# podman 5.2 and later also hand over what they pull by (--creds, another authfile), where the file\n\
         # /etc/containers/registries.conf has this line above its first [part]:\n\
         # additional-layer-store-auth-helper = \"{HELPER_PLACE}\"\n\
         # That program is {how}\n"
    )
}

/// Where the helper may be put.
const HELPER_PLACE: &str = "/usr/local/bin/crfs-auth-helper";

/// A word of a shell.
fn shell(path: &Path) -> String {
    format!("'{}'", printable(&path.display().to_string()).replace('\'', "'\\''"))
}

/// What `podman --version` says.
fn podman_version() -> String {
    match version_of("podman", PATIENCE) {
        Ok(Some(text)) if !text.is_empty() => text,
        Ok(None) => format!("podman --version has not ended for {} s", PATIENCE.as_secs()),
        _ => "no podman was found".to_owned(),
    }
}

/// What a program says of its version; `None`: it did not come to an end.
pub(super) fn version_of(program: &str, patience: Duration) -> io::Result<Option<String>> {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    if limit::wait_for(&mut child, patience)?.is_none() {
        return Ok(None);
    }
    // It has ended: what a pipe holds is all there is, unless it has left a process behind.
    let output = child.stdout.take();
    let read = move || {
        let mut text = String::new();
        output.map_or(Ok(0), |output| output.take(LONGEST_VERSION).read_to_string(&mut text)).map(|_| text)
    };
    Ok(limit::within(patience, read).transpose()?.map(|text| text.trim().to_owned()))
}

/// Bytes of a storage.conf.
const LONGEST_CONF: u64 = 1 << 20;

/// Bytes of a line that says a version.
const LONGEST_VERSION: u64 = 4096;

/// What storage.conf lists: by which key, and what of it is ours, as TOML has it.
struct List {
    key: &'static str,
    entry: String,
}

impl List {
    fn images(root: &Path) -> Self {
        Self { key: "additionalimagestores", entry: quoted(root) }
    }

    /// podman is to say which reference it pulls.
    fn layers(dir: &Path) -> Self {
        let mut named = dir.as_os_str().to_owned();
        named.push(":ref");
        Self { key: "additionallayerstores", entry: quoted(Path::new(&named)) }
    }
}

/// What has to be put where, as comments, and below them the lines themselves.
fn config_text(List { key, entry }: &List, conf: &Path, version: &str, uid: u32) -> String {
    let list = format!("{key} = [{entry}]\n");
    let behind = format!("has {key} already: put this behind the [ that follows it");
    let places = match uid {
        0 => "runroot = \"/run/containers/storage\"\ngraphroot = \"/var/lib/containers/storage\"\n",
        _ => "",
    };
    let whole = format!("[storage]\ndriver = \"overlay\"\n{places}\n[storage.options]\n{list}");
    let asked = conf.to_owned();
    let there = limit::answered(PATIENCE, move || outside::read(&asked, LONGEST_CONF));
    let there = there.map(|text| String::from_utf8_lossy(&text).into_owned());
    let unreadable = there.as_ref().err().map_or_else(String::new, |error| {
        format!("cannot be read here ({error}); without it, this would be all of it")
    });
    // The file is TOML, in which nothing may stand twice.
    let (advice, lines) = match &there {
        Err(error) if error.kind() == io::ErrorKind::NotFound => ("is not there yet: this is all of it", whole),
        Err(_) => (unreadable.as_str(), whole),
        Ok(text) if text.trim().is_empty() => ("is empty: this is all of it", whole),
        Ok(text) if is_listed(text, key, entry) => ("names this store already: nothing is to be done", String::new()),
        Ok(text) if has_key(text, key) => (behind.as_str(), format!("{entry},\n")),
        Ok(text) if has_table(text, "storage.options") => {
            ("has a part [storage.options] already: put this line below that one", list)
        }
        Ok(_) => {
            ("has no part [storage.options] yet: put these lines at its end", format!("[storage.options]\n{list}"))
        }
    };
    format!("# {version}. {} {advice}.\n{lines}", printable(&conf.display().to_string()))
}

/// Whether a key has a value in a TOML file, in any of its parts. (A line within a string of several lines would be taken for one.)
fn has_key(conf: &str, key: &str) -> bool {
    conf.lines().filter_map(|line| line.split_once('=')).any(|(found, _)| found.trim().trim_matches('"') == key)
}

/// Whether a list of additional stores has this string.
fn is_listed(conf: &str, key: &str, entry: &str) -> bool {
    let lines = || conf.lines().filter(|line| !line.trim_start().starts_with('#'));
    let list = lines().skip_while(|line| !has_key(line, key));
    let list = list.collect::<Vec<_>>().join("\n");
    list.split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .is_some_and(|(list, _)| list.split(',').any(|found| found.trim() == entry))
}

fn has_table(conf: &str, name: &str) -> bool {
    let header = |line: &str| {
        let (name, _) = line.trim().strip_prefix('[')?.split_once(']')?;
        Some(name.replace([' ', '\t'], ""))
    };
    conf.lines().filter_map(header).any(|found| found == name)
}

/// A basic string of TOML 1.0.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string().replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{text}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_conf_is_whole_where_there_is_none() {
        let text = config_text(
            &List::images(Path::new("/s/\"x")),
            Path::new("/nowhere/storage.conf"),
            "podman version 4.3.1",
            0,
        );
        assert!(text.starts_with("# podman version 4.3.1. /nowhere/storage.conf is not there yet"), "{text}");
        assert!(text.contains("graphroot") && text.ends_with("additionalimagestores = [\"/s/\\\"x\"]\n"), "{text}");
        assert!(!config_text(&List::images(Path::new("/s")), Path::new("/nowhere/c"), "", 7).contains("graphroot"));
    }

    #[test]
    fn the_helper_is_named_by_comments_alone() {
        use super::super::args::{Cli, Command};
        use clap::Parser as _;
        let text = |words: &[&str]| {
            let cli = Cli::parse_from(["crfs", "store", "config", "--layers"].iter().chain(words));
            let Command::Store(store) = cli.command else { panic!() };
            let StoreCommand::Config(args) = store.command else { panic!() };
            helper_text(&args, Path::new("/s t"))
        };
        for text in [text(&[]), text(&["--root", "/s t"])] {
            assert!(text.lines().all(|line| line.starts_with('#')), "{text}");
        }
        assert!(text(&[]).contains("ln -s"));
        assert!(text(&["--root", "/s t"]).contains("store auth-helper --root '/s t'\n"));
    }

    #[test]
    fn layers_are_another_list() {
        let layers = List::layers(Path::new("/s/layers"));
        let text = config_text(&layers, Path::new("/nowhere/storage.conf"), "podman", 0);
        assert!(text.ends_with("[storage.options]\nadditionallayerstores = [\"/s/layers:ref\"]\n"), "{text}");
        let dir = tempfile::tempdir().unwrap();
        let conf = dir.path().join("storage.conf");
        std::fs::write(&conf, "[storage.options]\nadditionalimagestores = [\"/s\"]\n").unwrap();
        let text = config_text(&layers, &conf, "podman", 0);
        assert!(text.contains("below that") && text.contains("additionallayerstores"), "{text}");
    }

    /// As distributions have it. A second key of a name, or a second part, would be an error to podman.
    #[test]
    fn storage_conf_that_is_there_is_not_made_unreadable() {
        let dir = tempfile::tempdir().unwrap();
        let conf = dir.path().join("storage.conf");
        let lines = |text: &str| {
            std::fs::write(&conf, text).unwrap();
            let text = config_text(&List::images(Path::new("/s")), &conf, "podman", 0);
            let (comment, lines) = text.split_once('\n').unwrap();
            assert!(comment.starts_with('#'), "{comment}");
            (comment.to_owned(), lines.to_owned())
        };
        let list = "additionalimagestores = [\"/s\"]\n";
        let (comment, put) = lines("[storage]\n[storage.options]\nadditionalimagestores = [\n]\n");
        assert!(comment.contains("behind the [") && put == "\"/s\",\n", "{comment} {put}");
        for there in ["[\"/s\"]", "[\n  # mine\n  \"/t\",\n  \"/s\",\n]"] {
            let (comment, put) = lines(&format!("[storage.options]\nadditionalimagestores = {there}\n"));
            assert!(comment.contains("names this store already") && put.is_empty(), "{comment} {put}");
        }
        let (comment, put) = lines("[storage.options]\nadditionalimagestores = [\"/s/t\"]\nx = [\"/s\"]\n");
        assert!(comment.contains("behind the [") && put == "\"/s\",\n", "{comment} {put}");
        let (comment, put) = lines("[storage]\n[ storage.options ] # x\n# additionalimagestores = [\n");
        assert!(comment.contains("below that") && put == list, "{comment} {put}");
        let (comment, put) = lines("[storage]\ndriver = \"overlay\"\n#[storage.options]\n[storage.options.overlay]\n");
        assert!(comment.contains("at its end") && put == format!("[storage.options]\n{list}"), "{comment} {put}");
        assert!(lines("\n").1.starts_with("[storage]\n"));
    }

    #[test]
    fn a_podman_that_does_not_end_is_not_waited_for() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let script = |text: &str| {
            let path = dir.path().join("podman");
            std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
            path.display().to_string()
        };
        assert_eq!(version_of(&script("echo podman version 9"), PATIENCE).unwrap().unwrap(), "podman version 9");
        assert_eq!(version_of(&script("exec sleep 600"), Duration::ZERO).unwrap(), None);
        assert!(version_of("/nowhere/podman", PATIENCE).is_err());
    }

    #[test]
    fn podmans_own_store_is_where_it_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let conf = dir.path().join("storage.conf");
        std::fs::write(&conf, "[storage]\ngraphroot = \"$HOME/a/$UID\"\n").unwrap();
        let environment =
            Environment { uid: 7, home: Some("/home/u".into()), storage_conf: Some(conf), ..Environment::default() };
        let roots = podman_roots(&environment).unwrap_or_default();
        assert_eq!(roots[0], Path::new("/home/u/a/7"));
        assert!(roots.contains(&"/home/u/.local/share/containers/storage".into()), "{roots:?}");
        assert_eq!(environment.store_dir(), Path::new("/home/u/.local/share/crfs/store"));
    }
}
