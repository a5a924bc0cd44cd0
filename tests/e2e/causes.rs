//! A mount that fails says what failed, whatever ended it.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::thread;

use crate::image::{File, noise, zstd_chunked};
use crate::lying::{Auth, Fault, Lie, On};
use crate::support::lab::CRFS;
use crate::support::lies::Liar;
use crate::support::{Lab, run, until};
use crate::tls_front::pem;

/// A registry with an image of one layer, and its reference.
fn image() -> (Liar, String) {
    let liar = Liar::new();
    let reference = liar.push(&[&zstd_chunked(&[File { name: "file", content: noise(10_000, 1) }], 10_000)]);
    (liar, reference)
}

/// What a mount says that fails. `set` changes the command's environment.
#[track_caller]
fn refusal(lab: &Lab, image: &str, options: &[&str], set: impl FnOnce(&mut Command)) -> String {
    let mut command = Command::new(CRFS);
    command.arg("mount").arg("--cache-dir").arg(lab.fresh("cache")).args(options).arg(image).arg(lab.fresh("mount"));
    set(&mut command);
    run(&mut command).refused()
}

#[test]
fn the_cause_behind_the_mount_deadline() {
    let Some(lab) = Lab::new() else { return };
    let status = |status| (Lie::Status(status, Vec::new()), format!("answered {status}"));
    let causes = [status(500), status(501), status(429), (Lie::Reset(0), "/blobs/".to_owned())];
    for (lie, cause) in causes {
        let (liar, reference) = image();
        liar.fault(Fault::always(On::Blobs, lie));
        let message = refusal(&lab, &reference, &["--mount-deadline", "3s"], |_| ());
        assert!(message.contains("not mounted within 3 s (--mount-deadline): layer sha256:"), "{message}");
        assert!(message.contains("tries, the last: ") && message.contains(&cause), "{message}");
    }
}

#[test]
fn a_registry_that_says_nothing_until_the_mount_deadline() {
    let Some(lab) = Lab::new() else { return };
    let (liar, reference) = image();
    liar.fault(Fault::always(On::Blobs, Lie::Silence));
    let message = refusal(&lab, &reference, &["--mount-deadline", "3s"], |_| ());
    assert!(message.contains("(--mount-deadline): layer sha256:") && message.contains(": no answer for "), "{message}");
}

#[test]
fn a_credential_helper_that_hangs_is_named_and_ended() {
    let Some(lab) = Lab::new() else { return };
    let (liar, reference) = image();
    liar.set_auth(Auth::Basic { user: "user".into(), password: "hunter2".into() });
    let bin = lab.fresh("bin");
    let (helper, pids) = (bin.join("docker-credential-hangs"), lab.path("pids"));
    let script = format!("#!/bin/sh\nsleep 3600 &\necho $$ $! > {0}.new\nmv {0}.new {0}\nwait\n", pids.display());
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(bin.join("config.json"), r#"{"credsStore":"hangs"}"#).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let message = refusal(&lab, &reference, &["--mount-deadline", "5s"], |command| {
        command.env("PATH", path).env("REGISTRY_AUTH_FILE", bin.join("config.json"));
    });
    assert!(message.contains("docker-credential-hangs (named in "), "{message}");
    let pids = fs::read_to_string(pids).unwrap();
    for pid in pids.split_whitespace() {
        let is_over = |stat: String| stat.contains(") Z ");
        until("the helper has ended", || {
            fs::read_to_string(Path::new("/proc").join(pid).join("stat")).map_or(true, is_over).then_some(())
        });
    }
}

/// A proxy that answers whatever it is asked with this, and the URL for its variable.
fn proxy(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://user:hunter2@{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let lines = BufReader::new(&client).lines().map_while(Result::ok);
            lines.take_while(|line| !line.is_empty()).for_each(drop);
            // Whoever asked may be gone.
            let _sent = client.write_all(answer.as_bytes());
        }
    });
    url
}

#[test]
fn a_proxy_that_does_not_connect_is_named_at_once() {
    let Some(lab) = Lab::new() else { return };
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let proxies = [
        (format!("http://{dead}"), dead.as_str(), "cannot be reached: Connection refused"),
        (proxy("HTTP/1.1 403 Not For You\r\nContent-Length: 0\r\n\r\n"), "127.0.0.1:", "403 Not For You"),
        (proxy("HTTP/1.1 407 Who Are You\r\nContent-Length: 0\r\n\r\n"), "127.0.0.1:", "407 Who Are You"),
        (proxy("HTTP/1.0 502 Bad Gateway\r\n\r\n"), "127.0.0.1:", "502 Bad Gateway"),
    ];
    for (url, shown, cause) in proxies {
        for variable in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"] {
            let message = refusal(&lab, "registry.example/a:1", &[], |command| {
                command.env(variable, &url);
            });
            for part in ["https://registry.example/", shown, variable, cause, "NO_PROXY"] {
                assert!(message.contains(part), "{message}");
            }
            assert!(!message.contains("hunter2") && !message.contains("tries"), "{message}");
        }
    }
}

#[test]
fn a_loopback_registry_that_speaks_tls_is_asked_by_it() {
    let Some(lab) = Lab::new() else { return };
    let (liar, reference) = image();
    let front = liar.behind_tls("rsa");
    let reference = reference.replace(&liar.host(), front.host());
    let message = refusal(&lab, &reference, &[], |_| ());
    assert!(message.contains("not trusted") && !message.contains("tries"), "{message}");
    let dir = lab.fresh("mount");
    let mut command = Command::new(CRFS);
    command.arg("mount").arg("--cache-dir").arg(lab.fresh("cache")).arg(&reference).arg(&dir);
    let line = run(command.env("SSL_CERT_FILE", pem("rsa"))).ok();
    let mount = crate::support::Mount::new(dir, line);
    assert_eq!(fs::read(mount.path("file")).unwrap(), noise(10_000, 1));
}
