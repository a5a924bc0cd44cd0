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
    wanted(&args, asked, &crfs, &environment()).map(|wanted| wanted.options).map_err(Failed::told)
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

#[test]
fn words_are_compared_by_what_they_mean() {
    let words = |words: &[&str]| -> Vec<OsString> { words.iter().map(OsString::from).collect() };
    let same = |a: &[&str], b: &[&str]| {
        let crfs = command(&environment()).ok().unwrap();
        let meant = |list: &[&str]| meant(&crfs, &words(list), &environment()).ok().unwrap();
        meant(a) == meant(b)
    };
    assert!(same(&["--prefetch=all"], &["--prefetch=none", "--prefetch=all"]));
    assert!(same(&[], &["--prefetch=hints", "--io-deadline=2m", "--allow-other"]));
    assert!(!same(&[], &["--prefetch=all"]));
}

#[test]
fn exit_statuses_are_those_of_mount() {
    assert_eq!(of_error(&Error::Interrupted), 8);
    assert_eq!(of_error(&Error::Spawn { source: std::io::ErrorKind::OutOfMemory.into() }), 2);
    assert_eq!(Failed::from(Error::Interrupted).told().0, 8);
    assert_eq!(Failed::from(Wrong::Fixed { names: "a".into(), dir: "/mnt".into() }).told().0, 32);
    assert_eq!(Failed::Command(Failure::Reported).told(), (32, None));
}
