use super::*;

fn role_of(line: &str) -> Option<Role> {
    role(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
}

fn helper(line: &str) -> MountHelperArgs {
    MountHelperArgs::try_parse_from(line.split(' ')).unwrap()
}

fn environment() -> Environment {
    Environment { home: Some("/root".into()), ..Environment::default() }
}

fn wanted_of(line: &str) -> Result<MountOptions, (u8, Option<String>)> {
    let args = helper(line);
    let asked = words::read(&args.options, definition().get_arguments()).map_err(|wrong| Failed::from(wrong).told())?;
    let crfs = command(&environment()).map_err(Failed::told)?;
    wanted(&args, asked, &crfs, &environment()).map_err(Failed::told)
}

fn refused(options: &str) -> (u8, String) {
    let (status, message) = wanted_of(&format!("mount.crfs docker://a.io/b /mnt -o {options}")).unwrap_err();
    (status, message.unwrap())
}

#[test]
fn it_is_a_helper_by_its_name_or_by_its_arguments() {
    for line in
        ["/sbin/mount.crfs a /mnt -o rw", "mount.fuse.crfs mount /mnt", "crfs a /mnt -o ro", "crfs a /mnt -oro,x"]
    {
        assert_eq!(role_of(line), Some(Role::Mount), "{line}");
    }
    assert_eq!([role_of("umount.fuse.crfs /mnt"), role_of("/sbin/umount.crfs /mnt -l")], [Some(Role::Umount); 2]);
    let commands =
        ["crfs", "crfs mount a /mnt", "crfs status -o x", "crfs moutn a /mnt", "crfs keep /mnt -o", "crfs -v a -o x"];
    for line in commands {
        assert_eq!(role_of(line), None, "{line}");
    }
}

#[test]
fn both_helpers_are_called_as_mount_calls_them() {
    let args = helper("mount.crfs docker://a /mnt -s -f -n -v -N /proc/1/ns/mnt -o rw,noexec -t fuse.crfs");
    assert!(args.sloppy && args.fake && args.both.no_mtab && args.verbose == 1 && args.both.namespace.is_some());
    let args = UmountHelperArgs::try_parse_from("umount.crfs /mnt -f -l -n -r -v -t fuse.crfs".split(' ')).unwrap();
    assert!(args.force && args.lazy && args.both.no_mtab && args.read_only && args.verbose == 1);
    definitions().into_iter().for_each(clap::Command::debug_assert);
}

#[test]
fn options_mean_what_they_mean_to_crfs_mount() {
    let options = "rw,prefetch=all,noexec,io_deadline=9s,prefetch=none,whole-layer-below=2MiB,cache-size=1G";
    let options = wanted_of(&format!("mount.crfs docker://a.io/b:1 /mnt/ -o {options}")).unwrap();
    assert_eq!(options.prefetch, crate::serve::options::Prefetch::None, "the later one wins");
    assert_eq!((options.source.io_deadline.as_secs(), options.source.whole_layer_below), (9, 2 << 20));
    assert_eq!((options.noexec, options.dir.as_path()), (true, Path::new("/mnt")));
    assert_eq!(options.shown.as_deref(), Some("docker://a.io/b:1"), "as fstab has it");
}

#[test]
fn wrong_options_are_named() {
    let (status, message) = refused("prefech=all");
    assert_eq!((status, message.as_str()), (1, "unknown option prefech: is prefetch meant?"));
    assert!(refused("uid=7").1.starts_with("unknown option uid: "));
    assert!(refused("user_id=7").1.starts_with("unknown option user_id"));
    let (status, message) = refused("prefetch=some");
    assert!(status == 1 && message.contains("'some'") && message.contains("none, hints, all"), "{message}");
    assert!(!message.contains('\n') && !message.contains("Usage"), "{message}");
    assert!(refused("help").1.starts_with("unknown option help"));
    assert!(refused("io-deadline=0").1.contains("no time at all"));
    assert!(refused("soci-v1,soci-index=sha256:0").0 == 1);
    let sloppy = wanted_of("mount.crfs docker://a.io/b /mnt -s -o uid=7,nfs_export,user_id=8").unwrap();
    assert!(sloppy.nfs_export);
}

#[test]
fn what_mount_has_taken_for_a_file_is_said() {
    let (status, message) = wanted_of("mount.crfs /srv/alpine /mnt").unwrap_err();
    assert!(status == 1 && message.as_ref().unwrap().contains("docker://"), "{message:?}");
}

#[test]
fn the_mount_table_shows_what_fstab_needs() {
    let shown = |text: &str| shown(text, &wanted_of(&format!("mount.crfs {text} /mnt")).unwrap().source.image);
    for text in
        ["docker://a.io/b:1", "a.io/b:1", "oci:/srv/b:1", "oci-archive:/srv/b.tar", "docker-archive:/srv/b.tar:c:1"]
    {
        assert_eq!(shown(text).as_deref(), Some(text));
    }
    let here = std::env::current_dir().unwrap();
    assert_eq!(shown("oci:srv/b:1").unwrap(), format!("oci:{}/srv/b:1", here.display()));
    assert_eq!(super::shown("crfs-store", &"docker://a.io/b".parse().unwrap()), None, "what crfs takes for a store's");
}

/// Whether a remount with that word changes nothing of a mount that was made with these.
fn is_so_of(made_with: &[&str], word: &str) -> bool {
    let words: Vec<_> = made_with.iter().map(OsString::from).collect();
    let crfs = mount_command(Cli::command());
    let (args, _) = parse(&crfs, &words, "a.io/b".as_ref(), "/mnt".as_ref()).unwrap();
    let then = settled::with_defaults(crfs, &args.settled);
    is_so(&then, &word.into(), &environment()).map_err(Failed::told).unwrap()
}

#[test]
fn words_are_compared_by_what_they_mean() {
    assert!(is_so_of(&["--prefetch=none", "--prefetch=all"], "--prefetch=all"));
    for word in ["--prefetch=hints", "--io-deadline=2m", "--allow-other"] {
        assert!(is_so_of(&[], word), "{word}");
    }
    assert!(!is_so_of(&[], "--prefetch=all"));
    assert!(!is_so_of(&["--prefetch=all"], "--prefetch=hints"), "the default of today");
    assert!(is_so_of(&["--nfs-export"], "--nfs-export") && !is_so_of(&[], "--nfs-export"));
    assert!(is_so_of(&["--cache-dir=a"], "--cache-dir=./a") && !is_so_of(&["--cache-dir=a"], "--cache-dir=b"));
}

#[test]
fn a_mount_is_compared_with_what_it_was_made_with() {
    // What contradicts each other on a command line need not do so where one of them is a default.
    let crfs = mount_command(Cli::command()).mut_subcommand("mount", |mount| {
        mount
            .mut_arg("nfs_export", |arg| arg.default_values(["true"]))
            .mut_arg("prefetch", |arg| arg.default_values(["all"]))
    });
    let (args, _) = parse(&crfs, &["--layer=0".into()], "a.io/b".as_ref(), "/mnt".as_ref()).unwrap();
    let then = settled::with_defaults(mount_command(Cli::command()), &args.settled);
    let is_so = |word: &str| is_so(&then, &word.into(), &environment()).map_err(Failed::told).unwrap();
    assert!(is_so("--prefetch=all") && is_so("--layer=0") && !is_so("--prefetch=hints") && !is_so("--layer=1"));
    // Of a file that is gone nothing is known but its name.
    let gone =
        settled::with_defaults(mount_command(Cli::command()), &["--authfile=/gone".into(), "--unknown=1".into()]);
    assert!(super::is_so(&gone, &"--authfile=/gone".into(), &environment()).is_ok_and(|is_so| is_so));
}

#[test]
fn a_remount_may_be_sloppy() {
    let args = helper("mount.crfs docker://a.io/b /mnt -s -o remount,uid=7,noexec");
    let crfs = mount_command(Cli::command());
    let asked = || words::read(&args.options, definition().get_arguments()).unwrap();
    let mut left = asked();
    read(&args, &mut left, &crfs).map_err(|wrong| Failed::from(wrong).told()).unwrap();
    assert_eq!(left.words, ["--noexec"]);
    let strict = MountHelperArgs { sloppy: false, ..helper("mount.crfs docker://a.io/b /mnt") };
    assert!(matches!(read(&strict, &mut asked(), &crfs), Err(Wrong::Unknown { .. })));
}

#[test]
fn exit_statuses_are_those_of_mount() {
    assert_eq!(of_error(&Error::Interrupted), 8);
    assert_eq!(of_error(&Error::Spawn { source: std::io::ErrorKind::OutOfMemory.into() }), 2);
    assert_eq!(Failed::from(Error::Interrupted).told().0, 8);
    assert_eq!(Failed::from(Wrong::Fixed { names: "a".into(), dir: "/mnt".into() }).told().0, 32);
    assert_eq!(Failed::Command(Failure::Reported).told(), (32, None));
}
