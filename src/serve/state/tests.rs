use super::*;
use crate::serve::control::bind;

fn find_all(bases: &[PathBuf]) -> Vec<FoundState> {
    found_in(bases).unwrap()
}

fn record(state: &OwnState) -> Record {
    Record {
        id: state.id(),
        pid: 1,
        image: "docker.io/library/x".into(),
        digest: Digest::of(b""),
        frontend: "fuse".into(),
        dir: "/mnt".into(),
        device: Device { major: 0, minor: u32::MAX },
        instance: None,
        user: Some(0),
        namespace: None,
        started: 1,
        options: None,
        shown: None,
        words: Vec::new(),
    }
}

#[test]
fn where_state_is_kept() {
    let run = Path::new("/run/user/7");
    assert_eq!(state_dirs(7, Some(run)), ["/run/user/7/crfs", "/tmp/crfs-7"].map(PathBuf::from));
    assert_eq!(state_dirs(7, None), ["/run/user/7/crfs", "/tmp/crfs-7"].map(PathBuf::from));
    assert_eq!(state_dirs(7, Some(Path::new("here"))), state_dirs(7, None));
    assert_eq!(state_dirs(0, None), ["/run/crfs", "/tmp/crfs-0"].map(PathBuf::from));
    assert_eq!(state_dirs(0, Some(run)), ["/run/crfs", "/run/user/7/crfs", "/tmp/crfs-0"].map(PathBuf::from));
}

#[test]
fn a_directory_that_others_may_enter_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let (open, good) = (dir.path().join("open"), dir.path().join("good"));
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink(&open, dir.path().join("link")).unwrap();
    let error = OwnState::create(std::slice::from_ref(&open)).err().unwrap().to_string();
    assert!(error.contains("0700"), "{error}");
    assert!(OwnState::create(&[dir.path().join("link")]).is_err());
    let state = OwnState::create(&[open, good.clone()]).unwrap();
    assert_eq!(fs::metadata(&good).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(good.join(state.id())).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn a_served_state_is_found_and_goes_with_its_server() {
    let dir = tempfile::tempdir().unwrap();
    let bases = [dir.path().join("crfs")];
    let state = OwnState::create(&bases).unwrap();
    assert!(find_all(&bases).is_empty(), "not before it is written");
    let record = record(&state);
    state.write(&record).unwrap();
    let found = find_all(&bases);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].record, record);
    assert!(found[0].is_served().unwrap());
    drop(state);
    assert!(!found[0].is_served().unwrap());
    assert!(find_all(&bases).is_empty());
}

#[test]
fn a_state_goes_with_all_that_a_server_puts_into_it() {
    let dir = tempfile::tempdir().unwrap();
    let bases = [dir.path().join("crfs")];
    let state = OwnState::create(&bases).unwrap();
    state.write(&record(&state)).unwrap();
    let _socket = bind(&state.socket()).unwrap();
    let _old = OLD_SOCKETS.map(|name| bind(&state.socket().with_file_name(name)).unwrap());
    for log in [LOG, OLD_LOG] {
        fs::write(state.dir.join(log), "{}\n").unwrap();
    }
    let path = state.dir.clone();
    drop(state);
    assert!(!path.exists());
}

#[test]
fn what_a_dead_server_left_is_removed_once_its_mount_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let bases = [dir.path().join("crfs")];
    let dead = OwnState::create(&bases).unwrap();
    dead.write(&record(&dead)).unwrap();
    let path = bases[0].join(dead.id());
    dead.leave();
    assert!(path.exists());
    let _other = OwnState::create(&bases).unwrap();
    assert!(!path.exists());
}

#[test]
fn what_is_not_of_crfs_stays_whatever_it_looks_like() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let bases = [dir.path().join("crfs")];
    drop(OwnState::create(&bases).unwrap());
    let path = |name: &str| bases[0].join(name);
    let files = [
        "overlay/upper/work",
        "Projects/server.log",
        "Projekte/mount.json",
        "abcd1234/state.id",
        "abcd1235/state.id",
        "abcd1235/mine",
        "abcd1236/mount.json",
    ];
    for file in files {
        fs::create_dir_all(path(file).parent().unwrap()).unwrap();
        fs::write(path(file), "mine").unwrap();
    }
    // It says that it is one, but there is more in it.
    fs::write(path("abcd1235/state.id"), "abcd1235").unwrap();
    // The state of another directory, copied.
    let state = OwnState::create(&bases).unwrap();
    state.write(&record(&state)).unwrap();
    fs::copy(path(&state.id()).join(RECORD), path("abcd1236/mount.json")).unwrap();
    fs::create_dir(path("empty000")).unwrap();
    symlink("overlay", path("link0000")).unwrap();
    nix::unistd::mkfifo(&path("Projects/mount.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for _ in 0..2 {
        assert_eq!(find_all(&bases).iter().filter(|found| found.is_served().unwrap()).count(), 1);
        let _next = OwnState::create(&bases).unwrap();
    }
    drop(state);
    for kept in files.iter().chain(&["empty000", "link0000"]) {
        assert!(path(kept).exists(), "{kept}");
    }
    assert_eq!(fs::read_dir(&bases[0]).unwrap().count(), 8, "and nothing of crfs's is left");
}

#[test]
fn what_was_left_while_it_was_made_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let bases = [dir.path().join("crfs")];
    drop(OwnState::create(&bases).unwrap());
    let path = |name: &str| bases[0].join(name);
    // Before its mark, within it, and behind it; and what is none of crfs's.
    for (name, mark) in [(".new-abcd1234", None), (".new-abcd1235", Some("")), (".new-abcd1236", Some("abcd1236"))] {
        fs::create_dir(path(name)).unwrap();
        fs::set_permissions(path(name), Permissions::from_mode(0o700)).unwrap();
        mark.iter().for_each(|mark| fs::write(path(name).join(MARK), mark).unwrap());
    }
    let theirs = [".new-abcd1237/thesis", ".new-/x", ".new-abcd123/x", ".newabcd1234/x"];
    for file in theirs {
        fs::create_dir(path(file).parent().unwrap()).unwrap();
        fs::write(path(file), "mine").unwrap();
    }
    // While somebody makes one, it is left alone.
    let making = lock(&OwnDir::open(&bases[0]).unwrap(), FlockArg::LockExclusive).unwrap();
    assert!(find_all(&bases).is_empty() && path(".new-abcd1234").exists());
    drop(making);
    assert!(find_all(&bases).is_empty());
    assert_eq!(fs::read_dir(&bases[0]).unwrap().count(), theirs.len());
    assert!(theirs.iter().all(|file| path(file).exists()));
}

#[test]
fn a_name_that_another_mount_has_by_now_is_not_taken_for_that_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let bases = [dir.path().join("crfs")];
    let (first, second) = (OwnState::create(&bases).unwrap(), OwnState::create(&bases).unwrap());
    first.write(&record(&first)).unwrap();
    let found = find_all(&bases).remove(0);
    let path = first.dir.clone();
    let moved = dir.path().join("moved");
    fs::rename(&path, &moved).unwrap();
    // All that it says is the same.
    second.write(&record(&first)).unwrap();
    fs::write(second.dir.join(MARK), first.id()).unwrap();
    let name = second.dir.clone();
    fs::rename(&name, &path).unwrap();
    assert!(!found.is_served().unwrap() && found.servers().is_empty() && found.connect().is_err());
    drop(first);
    found.remove();
    assert!(path.join(RECORD).exists() && moved.join(RECORD).exists());
    second.leave();
    found.remove();
    assert!(path.join(RECORD).exists(), "nobody serves it, and it is another's");
    find_all(&bases).iter().for_each(FoundState::remove);
    assert!(!path.exists());
}

#[test]
fn nothing_goes_through_a_mount() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let dir = tempfile::tempdir().unwrap();
    let bases = [dir.path().join("crfs")];
    // As a server leaves it; its name is on another directory by now.
    let dead = OwnState::create(&bases).unwrap();
    let (id, theirs) = (dead.id(), dir.path().join("theirs"));
    dead.leave();
    fs::create_dir(&theirs).unwrap();
    fs::write(theirs.join(MARK), &id).unwrap();
    let (point, none) = (bases[0].join(&id), None::<&str>);
    if mount(Some(&theirs), &point, none, MsFlags::MS_BIND, none).is_err() {
        return;
    }
    assert!(find_all(&bases).is_empty());
    umount2(&point, MntFlags::MNT_DETACH).unwrap();
    assert!(theirs.join(MARK).exists());
    assert!(find_all(&bases).is_empty() && !point.exists(), "without the mount it is crfs's");
}

#[test]
fn a_directory_that_is_locked_is_waited_for_with_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let bases = [dir.path().join("crfs"), dir.path().join("other")];
    let first = OwnState::create(&bases).unwrap();
    let _held = lock(&OwnDir::open(&bases[0]).unwrap(), FlockArg::LockExclusive).unwrap();
    let error = OwnState::create_within(Duration::ZERO, &bases[..1]).err().unwrap().to_string();
    assert!(error.contains("locked") && error.contains("crfs"), "{error}");
    let second = OwnState::create_within(Duration::ZERO, &bases).unwrap();
    assert!(bases[0].join(first.id()).exists() && bases[1].join(second.id()).exists());
}

#[test]
fn a_place_that_somebody_else_has_prepared_is_not_used() {
    use std::os::unix::fs::{lchown, symlink};
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o1777)).unwrap();
    let (theirs, link) = (dir.path().join("private"), dir.path().join("crfs-7"));
    fs::create_dir(&theirs).unwrap();
    fs::set_permissions(&theirs, Permissions::from_mode(0o700)).unwrap();
    symlink(&theirs, &link).unwrap();
    if lchown(&link, Some(4242), None).is_err() {
        return;
    }
    let error = OwnState::create(&[link.join("crfs")]).err().unwrap().to_string();
    assert!(error.contains("user 4242"), "{error}");
    assert_eq!(fs::read_dir(&theirs).unwrap().count(), 0);
}

#[test]
fn a_dead_mount_that_is_still_in_the_table_is_told_from_one_that_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let state = OwnState::create(&[dir.path().join("crfs")]).unwrap();
    let record = record(&state);
    let mut mount = mounts::Mount {
        id: 7,
        parent: 1,
        device: record.device,
        point: "/mnt".into(),
        kind: mounts::TYPE.into(),
        source: record.source().into(),
        options: "ro,user_id=0,group_id=0".into(),
    };
    assert!(record.describes(&mount));
    mount.options = "ro,user_id=7,group_id=0".into();
    assert!(!record.describes(&mount), "the number was given to another user's mount of the same image");
    assert!(Record { user: None, ..record.clone() }.describes(&mount), "an older server's");
    mount.source = "other".into();
    assert!(!Record { user: None, ..record }.describes(&mount), "the number was given to another mount");
}

#[test]
fn a_mount_that_got_the_number_of_one_that_is_gone_is_told_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let state = OwnState::create(&[dir.path().join("crfs")]).unwrap();
    let record = Record { instance: Some(100), ..record(&state) };
    let mount = mounts::Mount {
        id: 7,
        parent: 1,
        device: record.device,
        point: "/mnt".into(),
        kind: mounts::TYPE.into(),
        source: record.source().into(),
        options: "ro,user_id=0,group_id=0".into(),
    };
    assert!(record.described(&mount, Some(100)) && !record.described(&mount, Some(101)));
    assert!(record.described(&mount, None), "there is no sysfs here");
    assert!(Record { instance: None, ..record }.described(&mount, Some(101)), "an older server's");
}

/// No descriptor can be had: nothing is taken for dead, and nothing is removed.
#[test]
fn what_cannot_be_told_is_not_taken_for_dead() {
    let dir = tempfile::tempdir().unwrap();
    let bases = [dir.path().join("crfs")];
    let (served, dead) = (OwnState::create(&bases).unwrap(), OwnState::create(&bases).unwrap());
    for state in [&served, &dead] {
        state.write(&record(state)).unwrap();
    }
    let mut found = find_all(&bases);
    // Nobody may read the directory, as where there are no more descriptors.
    let gone = bases[0].clone();
    for state in &mut found {
        state.base = dir.path().join("x".repeat(300));
        assert!(state.is_served().is_err() && state.may_be_served());
    }
    let (_, silent) = found_where_answered(&[found[0].base.clone(), gone.clone()]);
    assert!(silent.unwrap().to_string().contains("xxx"));
    assert!(found_in(&[found[0].base.clone()]).is_err());
    dead.leave();
    assert_eq!(find_all(&bases).len(), 1, "the other is gone");
    drop(served);
}

#[test]
fn a_record_is_there_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let bases = [dir.path().join("crfs")];
    let state = OwnState::create(&bases).unwrap();
    fs::write(state.dir.join(NEW_RECORD), "{").unwrap();
    assert!(find_all(&bases).is_empty());
    let reads = || read_record(&OwnDir::open(&state.dir).unwrap()).unwrap().unwrap();
    state.write(&record(&state)).unwrap();
    let (first, _) = reads();
    assert_eq!(reads().0, first);
    state.write(&record(&state)).unwrap();
    assert_ne!(reads().0, first, "it is another file");
    assert!(!state.dir.join(NEW_RECORD).exists());
    // Whoever is killed meanwhile leaves it.
    fs::write(state.dir.join(NEW_RECORD), "{").unwrap();
    drop(state);
    assert_eq!(fs::read_dir(&bases[0]).unwrap().count(), 0);
}
