//! What a keeper does when a worker has come to its end.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::time::Instant;

use super::super::deaths::How;
use super::super::refusing::{self, Mount, Refusing};
use super::super::wire::Packet;
use super::super::worker::{Which, Worker};
use super::{End, FENCED, Keeper, Step, heard};

impl Keeper {
    /// Hears what a worker has said before it ended.
    pub(super) fn bury(&mut self, mut worker: Worker, how: How) -> Step {
        for packet in heard(Some(&mut worker)).0 {
            match packet {
                Packet::Held(held, _) if self.held.is_none() => {
                    worker.went.get_or_insert_with(Instant::now);
                    self.held = Some(held);
                }
                Packet::Ready(_, words) if worker.went.is_some() => {
                    worker.is_ready = true;
                    self.is_there(words, None);
                }
                _ => {}
            }
        }
        self.mourn(worker, how)
    }

    fn mourn(&mut self, worker: Worker, how: How) -> Step {
        // Whoever has started this hears of its end as that of the worker.
        let Some(held) = self.held.as_ref().filter(|_| worker.is_ready || self.before > 0 || worker.went.is_none())
        else {
            return Err(match how {
                How::Killed(signal) => End::As(signal),
                How::Exited(status) => End::Exit(u8::try_from(status).unwrap_or(u8::MAX)),
            });
        };
        if (how == How::Exited(0) && worker.went.is_some()) || refusing::mount(held.device.as_fd()) == Mount::Gone {
            return Err(End::Exit(0));
        }
        // One that was dying has not heard what it was asked a moment ago.
        if self.passed_on.take().is_some_and(|asked| asked.elapsed() < FENCED) && matches!(how, How::Killed(_)) {
            self.ends += 1;
        }
        let death = worker.death(how);
        let has_crashed = death.served.is_some() && death.is_crash();
        let never_served = death.served.is_none();
        self.why = death.cause();
        let pause = self.deaths.count(death);
        self.distrust(never_served);
        // One that had hardly served has ended no outage.
        let outage = self.ended.take().filter(|_| self.deaths.is_row());
        self.down = self.down.or(outage).or_else(|| Some(Instant::now()));
        if has_crashed {
            self.refuse_suspects();
        } else {
            self.suspects.clear();
        }
        // Whether the one that is about to follow ever comes up is not known.
        self.give_up_upgrade("the server died meanwhile".to_owned());
        self.due = Some(Instant::now() + pause);
        Ok(())
    }

    /// What an upgrade has brought and does not come up, or dies again and again, is not started any more.
    pub(super) fn distrust(&mut self, never_served: bool) {
        if self.which == Which::Installed && (never_served || self.deaths.trouble().is_some()) {
            self.which = Which::Own;
            self.why.push_str("; the program serves again that did before the upgrade");
        }
    }

    /// A request that two workers have crashed on is refused.
    fn refuse_suspects(&mut self) {
        let Some(held) = &self.held else { return };
        let Ok(mut refusing) = Refusing::begin(&held.device) else { return };
        let Ok(unanswered) = refusing.unanswered() else { return };
        let guilty: BTreeSet<_> = unanswered.intersection(&self.suspects).copied().collect();
        let _heard = refusing.refuse_these(guilty.iter().copied());
        self.suspects = unanswered;
        self.suspects.retain(|number| !guilty.contains(number));
    }
}
