//! What a keeper says to whoever waits for its mount: the words of its first worker, once that is ready.
//!
//! A worker that said them itself could be killed just before. Nobody would hear of the mount then, and another worker serves it. The keeper waits for
//! nobody who does not read.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::wire::Words;

/// A pipe that can be written to takes as many bytes at once (PIPE_BUF, pipe(7)).
const AT_ONCE: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Telling {
    /// What was standard output, until there is something to be said.
    output: Option<File>,
    /// What is still to be said, and where.
    left: VecDeque<Part>,
    /// Whether nobody is there any more who could hear it.
    is_alone: bool,
}

#[derive(Debug)]
struct Part {
    listener: File,
    bytes: Vec<u8>,
    /// Whether it is of use to nobody if that one is gone.
    matters: bool,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    All,
    /// Whoever is to hear the rest does not read yet.
    NotYet,
    /// Nobody listens.
    Nobody,
}

impl Telling {
    /// To be made while that is still there.
    pub(super) fn by_standard_output() -> io::Result<Self> {
        let output = io::stdout().as_fd().try_clone_to_owned()?;
        Ok(Self { output: Some(output.into()), ..Self::default() })
    }

    /// Says something. `None`: that was done before, or is not for this process to do.
    pub(super) fn say(&mut self, words: Words) -> Option<Told> {
        let output = self.output.take()?;
        let matters = !words.output.is_empty();
        self.left.push_back(Part { listener: output, bytes: words.output.into_bytes(), matters });
        if let Ok(error) = io::stderr().as_fd().try_clone_to_owned() {
            self.left.push_back(Part { listener: error.into(), bytes: words.error.into_bytes(), matters: false });
        }
        Some(self.go_on())
    }

    /// Who is to be waited for before more can be said.
    pub(super) fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.left.front().map(|part| part.listener.as_fd())
    }

    pub(super) fn go_on(&mut self) -> Told {
        while let Some(Part { listener, bytes, matters }) = self.left.front_mut() {
            if bytes.is_empty() {
                self.left.pop_front();
                continue;
            }
            if !takes(listener.as_fd()) {
                return Told::NotYet;
            }
            match listener.write(bytes.get(..AT_ONCE).unwrap_or(bytes)) {
                Ok(len) => drop(bytes.drain(..len)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.is_alone |= error.kind() == io::ErrorKind::BrokenPipe && *matters;
                    self.left.pop_front();
                }
            }
        }
        if self.is_alone { Told::Nobody } else { Told::All }
    }
}

/// Whether that can be written to without waiting.
fn takes(listener: BorrowedFd<'_>) -> bool {
    let mut asked = [PollFd::new(listener, PollFlags::POLLOUT)];
    poll(&mut asked, PollTimeout::ZERO).is_ok_and(|found| found > 0)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn pipe() -> (File, File) {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        (reader.into(), writer.into())
    }

    fn telling(output: impl Into<std::os::fd::OwnedFd>) -> Telling {
        Telling { output: Some(File::from(output.into())), ..Telling::default() }
    }

    fn words(output: &str) -> Words {
        Words { output: output.to_owned(), error: String::new() }
    }

    #[test]
    fn whoever_does_not_read_yet_hears_it_later() {
        let (mut reader, mut writer) = pipe();
        while takes(writer.as_fd()) {
            writer.write_all(&[b'x'; AT_ONCE]).unwrap();
        }
        let mut telling = telling(writer);
        assert_eq!(telling.say(words("mounted")), Some(Told::NotYet));
        let mut before = vec![0; 1 << 16];
        while telling.go_on() == Told::NotYet {
            assert!(telling.listener().is_some());
            let len = reader.read(&mut before).unwrap();
            assert!(before[..len].iter().all(|byte| *byte == b'x'));
        }
        let mut heard = String::new();
        reader.read_to_string(&mut heard).unwrap();
        assert!(heard.ends_with("mounted"), "{heard}");
        assert_eq!((telling.listener().is_none(), telling.say(words("twice"))), (true, None));
    }

    #[test]
    fn that_nobody_listens_is_known() {
        let (reader, writer) = pipe();
        drop(reader);
        assert_eq!(telling(writer).say(words("mounted")), Some(Told::Nobody));
    }
}
