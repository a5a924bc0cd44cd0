//! Credential helpers: `docker-credential-NAME get`, the server's name on its input, JSON on its output
//! (docker-credential-helpers' protocol).

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::secret::{Identity, Secret};

/// A helper may ask its user for a key; beyond this it hangs.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// More than any token; a bound against a helper gone wild.
const LARGEST_ANSWER: u64 = 1 << 20;

/// What a user name of this means: the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// Its texts never hold what a helper wrote, which may be the secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelperError {
    #[error("{0:?} is not the name of a credential helper")]
    Name(String),
    #[error("docker-credential-{name} cannot be run")]
    Run { name: String, source: std::io::Error },
    #[error("docker-credential-{0} did not answer within {seconds} s, and was ended", seconds = TIME_LIMIT.as_secs())]
    Late(String),
    #[error("docker-credential-{name} failed with {status}")]
    Failed { name: String, status: std::process::ExitStatus },
    #[error("docker-credential-{0} answered with something other than credentials")]
    Answer(String),
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username")]
    user: String,
    #[serde(rename = "Secret")]
    secret: String,
}

/// A helper with all that it starts: ended where it did not end by itself.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // None: it was waited for. Until then nobody else can have its number.
        let leader = self.0.id().and_then(|id| i32::try_from(id).ok());
        if let Some(leader) = leader {
            // An error says that it has just ended.
            let _ended = killpg(Pid::from_raw(leader), Signal::SIGKILL);
        }
    }
}

/// Asks a helper for a server's credentials; `None` where it has none.
pub(super) async fn get(name: &str, server: &str) -> Result<Option<Identity>, HelperError> {
    // A name with a slash would run a program outside of $PATH.
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err(HelperError::Name(name.to_owned()));
    }
    let command = Command::new(format!("docker-credential-{name}"));
    let answer = tokio::time::timeout(TIME_LIMIT, run(command, name, server)).await;
    answer.map_err(|_| HelperError::Late(name.to_owned()))?
}

async fn run(mut command: Command, name: &str, server: &str) -> Result<Option<Identity>, HelperError> {
    let error = |source| HelperError::Run { name: name.to_owned(), source };
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut group = Group(command.process_group(0).spawn().map_err(error)?);
    let child = &mut group.0;
    if let Some(mut input) = child.stdin.take() {
        // A helper that does not read its input is judged by its answer.
        let _ = input.write_all(format!("{server}\n").as_bytes()).await;
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(LARGEST_ANSWER).read_to_end(&mut output).await.map_err(error)?;
    }
    let status = child.wait().await.map_err(error)?;
    if !status.success() {
        let text = String::from_utf8_lossy(&output).to_lowercase();
        let has_none = text.contains("credentials not found") || text.contains("no credentials server url");
        return if has_none { Ok(None) } else { Err(HelperError::Failed { name: name.to_owned(), status }) };
    }
    let answer: Answer = serde_json::from_slice(&output).map_err(|_| HelperError::Answer(name.to_owned()))?;
    let secret = Secret::new(answer.secret);
    Ok(Some(match answer.user.as_str() {
        TOKEN_USER => Identity::Token(secret),
        _ => Identity::Password { user: answer.user, password: secret },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(script: &str) -> Result<Option<Identity>, HelperError> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(command, "test", "r.io").await
    }

    #[tokio::test]
    async fn helpers_speak_their_protocol() {
        let echo = r#"read server; echo "{\"ServerURL\":\"x\",\"Username\":\"$server-$0\",\"Secret\":\"pw\"}""#;
        let expected = Identity::Password { user: "r.io-get".into(), password: Secret::new("pw".into()) };
        assert_eq!(ask(echo).await.unwrap(), Some(expected));
        let token = r#"echo '{"Username":"<token>","Secret":"t"}'"#;
        assert_eq!(ask(token).await.unwrap(), Some(Identity::Token(Secret::new("t".into()))));
        assert_eq!(ask("echo credentials not found in native keychain; exit 1").await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_helper_that_hangs_is_ended_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // Whoever has the pipe open for writing keeps its reader waiting.
        let script = format!("sleep 3600 > {0} & exec sleep 3600 > {0}", path.display());
        let asking = tokio::spawn(async move { ask(&script).await });
        let opened = tokio::task::spawn_blocking(move || std::fs::File::open(path).unwrap());
        let mut pipe = opened.await.unwrap();
        asking.abort();
        assert!(asking.await.unwrap_err().is_cancelled());
        let rest = tokio::task::spawn_blocking(move || std::io::Read::read(&mut pipe, &mut [0]));
        assert_eq!(rest.await.unwrap().unwrap(), 0, "nobody has it open");
    }

    #[tokio::test]
    async fn what_a_helper_wrote_is_never_shown() {
        for script in ["echo hunter2; exit 1", "echo hunter2", "echo '{\"Username\":\"hunter2\"}'"] {
            let error = ask(script).await.unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
        assert!(matches!(get("../../bin/x", "r.io").await, Err(HelperError::Name(_))));
        assert!(matches!(get("no-such-helper-here", "r.io").await, Err(HelperError::Run { .. })));
    }
}
