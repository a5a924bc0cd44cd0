//! The life of a keeper: what it waits for, and what it does about it.

mod ends;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;

use super::deaths::{Death, Deaths, LIVED};
use super::notify::notify;
use super::refusing::{self, Mount, Refusing};
use super::renewal::FORM;
use super::shelf::Shelf;
use super::telling::{Telling, Told};
use super::wire::{Channel, Go, Held, Kept, Packet, Words};
use super::worker::{Program, Standard, Which, Worker};

/// How long a worker may take to be ready to take over in an upgrade.
const UPGRADE: Duration = Duration::from_secs(10);
/// How long the kernel may take to end a process that was killed. Beyond that it waits for a disk, and answers nobody any more.
const FENCED: Duration = Duration::from_secs(1);

/// What a keeper was started in.
#[derive(Debug, Default)]
pub(super) struct Setting {
    /// Whether it stays in its session, and has a standard error.
    pub(super) is_foreground: bool,
    /// Its hanging up asks the keeper to end; elsewhere that signal asks for an upgrade.
    pub(super) has_terminal: bool,
    /// Whether it is to leave the process group that it was started in, once a worker is ready.
    pub(super) leaves_late: bool,
    /// Where a service manager wants to hear when the mount can be used.
    pub(super) manager: Option<OsString>,
    /// Where that keeps what another keeper needs.
    pub(super) shelf: Option<Shelf>,
}

/// How long a worker may take to be ready to go on, where nobody serves. It has a limit of its own, and this is for one that hangs.
const STARTING: Duration = Duration::from_secs(600);
/// How long it is before one is started again where that failed.
const RETRY: Duration = Duration::from_secs(1);

/// How long it waits where it has no means.
const GLANCE: Duration = Duration::from_millis(100);

/// How a keeper ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Exit(u8),
    /// As its worker did, which never mounted.
    As(Signal),
}

/// What comes of something that has happened.
type Step = Result<(), End>;

pub(super) struct Keeper {
    program: Program,
    signals: SignalFd,
    setting: Setting,
    telling: Telling,
    /// What another worker is started from: what an upgrade has brought, as long as that comes up.
    which: Which,
    /// `None` until the first worker has mounted.
    held: Option<Held>,
    /// Who serves, or is about to.
    worker: Option<Worker>,
    /// Who is to follow the one that serves.
    next: Option<Worker>,
    /// Those that were killed and not yet waited for, and until when they are.
    fenced: Vec<(Worker, Instant)>,
    /// How many have gone before the one that serves, and how often that was for an upgrade.
    before: u32,
    upgrades: u32,
    deaths: Deaths,
    /// How the last one came to its end.
    why: String,
    /// Since when nobody serves; and since when nobody did, before the worker came that does.
    down: Option<Instant>,
    ended: Option<Instant>,
    /// When another worker is to be started.
    due: Option<Instant>,
    /// While the deadline is over, and nobody serves.
    refusing: Option<Refusing>,
    /// The requests that were not answered when the last worker crashed.
    suspects: BTreeSet<u64>,
    /// How often it was asked to end while nobody served.
    ends: u32,
    /// When the worker was last asked to end.
    passed_on: Option<Instant>,
}

/// What the keeper waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Signals,
    Workers,
    Device,
    Listener,
    /// Whoever is to be told that the mount can be used.
    Waiting,
}

impl Keeper {
    /// One whose worker is yet to mount.
    pub(super) fn first(
        program: Program,
        signals: SignalFd,
        (worker, telling): (Worker, Telling),
        setting: Setting,
    ) -> Self {
        Self { telling, ..Self::new(program, signals, Some(worker), setting) }
    }

    fn new(program: Program, signals: SignalFd, worker: Option<Worker>, setting: Setting) -> Self {
        Self {
            program,
            signals,
            setting,
            telling: Telling::default(),
            which: Which::Own,
            held: None,
            worker,
            next: None,
            fenced: Vec::new(),
            before: 0,
            upgrades: 0,
            deaths: Deaths::default(),
            why: String::new(),
            down: None,
            ended: None,
            due: None,
            refusing: None,
            suspects: BTreeSet::new(),
            ends: 0,
            passed_on: None,
        }
    }

    /// One that goes on where another program stopped.
    pub(super) fn renewed(program: Program, signals: SignalFd, (held, kept): (Held, Kept), setting: Setting) -> Self {
        let worker = Worker::passed_on(kept.worker, kept.channel);
        let keeper = Self::new(program, signals, Some(worker), setting);
        Self { held: Some(held), before: kept.before, upgrades: kept.upgrades, ..keeper }
    }

    /// One that goes on where a worker stopped, whose keeper is gone. `channel` ends with that worker, or before long.
    pub(super) fn heir(
        program: Program,
        signals: SignalFd,
        (held, go, channel): (Held, Go, &Channel),
        setting: Setting,
    ) -> Self {
        let mut ends = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(FENCED).unwrap_or(PollTimeout::MAX);
        let _ended = poll(&mut ends, patience);
        Self::orphaned(program, signals, (held, go), setting)
    }

    /// The same, where that one has ended.
    pub(super) fn orphaned(program: Program, signals: SignalFd, (held, go): (Held, Go), setting: Setting) -> Self {
        let (now, keeper) = (Some(Instant::now()), Self::new(program, signals, None, setting));
        let Go { before, upgrades, why } = go;
        Self { held: Some(held), before, upgrades, why, down: now, due: now, ..keeper }
    }

    /// Comes back when there is no mount any more, or never was one.
    pub(super) fn keep(mut self) -> io::Result<End> {
        loop {
            let happened = self.wait()?;
            let stepped = happened.into_iter().try_for_each(|source| self.step(source));
            if let Err(end) = stepped.and_then(|()| self.look_at_clock()) {
                self.end_workers();
                self.setting.shelf.iter().for_each(Shelf::clear);
                return Ok(end);
            }
        }
    }

    /// Whoever is about to serve has nothing to serve.
    fn end_workers(&mut self) {
        let workers = self.worker.take().into_iter().chain(self.next.take());
        workers.for_each(|worker| self.fence(worker));
        let is_waited_for =
            |(worker, until): &mut (Worker, Instant)| worker.ended().is_none() && *until > Instant::now();
        while self.fenced.iter_mut().any(is_waited_for) {
            std::thread::sleep(GLANCE / 20);
        }
    }

    fn step(&mut self, source: Source) -> Step {
        match source {
            Source::Signals => self.hear_signals(),
            Source::Workers => {
                self.hear_workers();
                Ok(())
            }
            Source::Device => self.see_device(),
            Source::Listener => {
                self.tell();
                Ok(())
            }
            Source::Waiting => {
                let told = self.telling.go_on();
                self.heard_of(Some(told));
                Ok(())
            }
        }
    }

    /// Whether there is a worker that answers the kernel, or mounts.
    fn is_serving(&self) -> bool {
        self.worker.as_ref().is_some_and(|worker| worker.went.is_some() || self.held.is_none())
    }

    /// Whether there is one that could be followed by another.
    fn is_kept(&self) -> bool {
        self.worker.as_ref().is_some_and(|worker| worker.went.is_some() && worker.is_ready)
    }

    /// One that is to go on, and does not yet.
    fn starting(&self) -> Option<&Worker> {
        let worker = self.worker.as_ref().filter(|_| self.held.is_some());
        worker.filter(|worker| worker.went.is_none() && !worker.is_ready && !worker.is_cut)
    }

    fn wait(&self) -> io::Result<Vec<Source>> {
        let sources = self.sources();
        let mut asked: Vec<_> = sources.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)).collect();
        match poll(&mut asked, self.timeout()) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let happened = asked.iter().zip(&sources).filter(|(asked, _)| asked.any().unwrap_or_default());
        Ok(happened.map(|(_, (source, ..))| *source).collect())
    }

    fn sources(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let mut sources = vec![(Source::Signals, self.signals.as_fd(), PollFlags::POLLIN)];
        // One that says nothing any more, and has not ended yet, would be heard of without an end.
        let workers = self.worker.iter().chain(&self.next).filter(|worker| !worker.is_cut);
        sources.extend(workers.map(|worker| (Source::Workers, worker.channel.as_fd(), PollFlags::POLLIN)));
        sources.extend(self.telling.listener().map(|waiting| (Source::Waiting, waiting, PollFlags::POLLOUT)));
        if let Some(held) = self.held.as_ref().filter(|_| !self.is_serving()) {
            // That it has ended is told in any case.
            let asked = if self.refusing.is_some() { PollFlags::POLLIN } else { PollFlags::empty() };
            sources.push((Source::Device, held.device.as_fd(), asked));
            if self.deaths.trouble().is_some() {
                sources.push((Source::Listener, held.listener.as_fd(), PollFlags::POLLIN));
            }
        }
        sources
    }

    /// When the clock is to be looked at again.
    fn timeout(&self) -> PollTimeout {
        let upgrade = self.next.as_ref().map(|next| next.started + UPGRADE);
        let now = Instant::now();
        let fenced = self.fenced.iter().map(|(_, until)| *until).filter(|until| *until > now);
        let deadline = self.deadline().filter(|_| self.refusing.is_none());
        let times = fenced.chain(self.due).chain(upgrade).chain(deadline).chain(self.starting().map(starts_until));
        let times = times.chain(self.renewal());
        let left = times.min().map(|time| time.saturating_duration_since(now) + Duration::from_millis(1));
        left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))
    }

    /// When those who wait for an answer have waited long enough.
    fn deadline(&self) -> Option<Instant> {
        self.down?.checked_add(self.held.as_ref()?.io_deadline)
    }

    fn look_at_clock(&mut self) -> Step {
        let now = Instant::now();
        let is_over = |time: Option<Instant>| time.is_some_and(|time| time <= now);
        if is_over(self.due) {
            self.due = None;
            self.start();
        }
        if is_over(self.next.as_ref().map(|next| next.started + UPGRADE)) {
            self.give_up_upgrade(format!("it was not ready within {} s", UPGRADE.as_secs()));
        }
        if is_over(self.starting().map(starts_until)) {
            self.worker.iter_mut().for_each(Worker::cut);
        }
        if is_over(self.renewal()) {
            self.renew();
        }
        if is_over(self.deadline()) && self.refusing.is_none() && !self.is_serving() {
            let begun = self.held.as_ref().and_then(|held| Refusing::begin(&held.device).ok());
            self.refusing = begun.and_then(|refusing| refusing.resend().ok().map(|()| refusing));
            if self.refusing.is_none() {
                // No memory, or no descriptors: it is tried again a deadline later.
                self.down = Some(now);
            }
            self.see_device()?;
        }
        self.reap()
    }

    /// Starts whoever is to go on.
    fn start(&mut self) {
        let Some(held) = &self.held else { return };
        match self.program.start(self.which, Standard::Error) {
            Ok(worker) => self.worker = Some(worker.handed(held, false)),
            // Too many processes, or no memory: that passes. Or the program is not there any more.
            Err(error) => {
                let pause = self.deaths.count(Death::unborn(&error));
                self.why = format!("it cannot be started: {error}");
                self.distrust(true);
                self.due = Some(Instant::now() + pause.max(RETRY));
            }
        }
    }

    fn hear_signals(&mut self) -> Step {
        // One that has ended hears nothing any more.
        self.reap()?;
        while let Ok(Some(heard)) = self.signals.read_signal() {
            let number = i32::try_from(heard.ssi_signo).unwrap_or_default();
            match Signal::try_from(number) {
                Ok(Signal::SIGHUP) if !self.setting.has_terminal => self.upgrade(),
                Ok(Signal::SIGCHLD) | Err(_) => {}
                Ok(Signal::SIGQUIT) if self.is_serving() => {
                    self.worker.iter().for_each(|worker| worker.signal(Signal::SIGQUIT));
                }
                Ok(Signal::SIGQUIT) => {}
                Ok(signal) => {
                    self.end_worker(signal);
                    if self.ends > 1 {
                        return Err(End::Exit(1));
                    }
                }
            }
        }
        self.reap()
    }

    fn hear_workers(&mut self) {
        let (from_next, is_cut) = heard(self.next.as_mut());
        self.next.iter_mut().filter(|_| is_cut).for_each(Worker::cut);
        if !is_cut {
            from_next.into_iter().for_each(|packet| self.hear_next(packet));
        }
        let (from_worker, is_cut) = heard(self.worker.as_mut());
        from_worker.into_iter().for_each(|packet| self.hear_worker(packet));
        self.worker.iter_mut().filter(|_| is_cut).for_each(Worker::cut);
    }

    fn hear_worker(&mut self, packet: Packet) {
        match (packet, &mut self.worker) {
            (Packet::Held(held, _), Some(worker)) => {
                worker.went.get_or_insert_with(Instant::now);
                self.held = Some(held);
            }
            (Packet::Ready(form, words), Some(worker)) => {
                (worker.is_ready, worker.form) = (true, form);
                let process = worker.process();
                self.is_there(words, process.ok());
                self.go();
            }
            (Packet::Upgrade, _) => self.upgrade(),
            _ => {}
        }
    }

    /// What follows from what came of telling whoever waits.
    fn heard_of(&mut self, told: Option<Told>) {
        match told {
            Some(Told::All) => {}
            // In the foreground, the mount is of use to others.
            Some(Told::Nobody) if self.setting.is_foreground => {}
            // Whoever waited has gone, and will never know of the mount.
            Some(Told::Nobody) => self.end_worker(Signal::SIGTERM),
            Some(Told::NotYet) | None => return,
        }
        if let Some(worker) = &self.worker {
            // One that is gone does not want to know any more.
            let _heard = worker.channel.send(&Packet::Told);
        }
    }

    /// Passes on to the worker that it is to end; where there is none that serves, to the next one.
    fn end_worker(&mut self, by: Signal) {
        if self.is_serving() {
            self.worker.iter().for_each(|worker| worker.signal(by));
            self.passed_on = Some(Instant::now());
        } else {
            self.ends += 1;
        }
    }

    /// The mount can be used. `process`: of who serves it.
    fn is_there(&mut self, words: Words, process: Option<OwnedFd>) {
        self.leave_group();
        let told = self.telling.say(words);
        self.heard_of(told);
        if let (Some(shelf), Some(held)) = (&mut self.setting.shelf, &self.held) {
            let counts = (self.before, self.upgrades);
            complain_of(shelf.keep(held, process.as_ref(), counts));
        }
        self.tell_manager();
    }

    fn leave_group(&mut self) {
        if std::mem::take(&mut self.setting.leaves_late) {
            super::own_session();
        }
    }

    /// The first worker has mounted.
    fn tell_manager(&mut self) {
        let Some(manager) = self.setting.manager.take() else { return };
        complain_of(notify(&manager, std::process::id()));
    }

    fn hear_next(&mut self, packet: Packet) {
        let Packet::Ready(form, _) = packet else { return };
        if let Some(next) = &mut self.next {
            (next.is_ready, next.form) = (true, form);
        }
        // It answers nobody any more from here on: what it has not answered, the next one will.
        self.upgrades = self.upgrades.saturating_add(1);
        self.which = Which::Installed;
        self.why = "it was upgraded".to_owned();
        self.suspects.clear();
        self.worker.take().into_iter().for_each(|old| self.fence(old));
        self.worker = self.next.take();
        self.down.get_or_insert_with(Instant::now);
        self.go();
    }

    fn fence(&mut self, worker: Worker) {
        worker.signal(Signal::SIGKILL);
        self.fenced.push((worker, Instant::now() + FENCED));
    }

    /// Lets the worker take over, if it can, and nobody else may still answer.
    fn go(&mut self) {
        let Some(worker) = self.worker.as_mut().filter(|worker| worker.is_ready && worker.went.is_none()) else {
            return;
        };
        let now = Instant::now();
        if self.held.is_none() || self.fenced.iter().any(|(_, until)| *until > now) {
            return;
        }
        // It waits for requests, as the next one is to.
        self.refusing = None;
        self.before = self.before.saturating_add(1);
        let why = std::mem::take(&mut self.why);
        if let (Some(shelf), Ok(process)) = (&mut self.setting.shelf, worker.process()) {
            // Nobody waits any longer for a manager that does not listen.
            let _kept = shelf.keep_worker(&process, (self.before, self.upgrades));
        }
        worker.go(Go { before: self.before, upgrades: self.upgrades, why });
        self.ended = self.down.take();
        if std::mem::take(&mut self.ends) > 0 {
            worker.signal(Signal::SIGTERM);
            self.passed_on = Some(now);
        }
    }

    /// Starts the program that is installed now, to take over when it is ready.
    fn upgrade(&mut self) {
        let Some(held) = self.held.as_ref().filter(|_| self.next.is_none() && self.is_kept()) else { return };
        match self.program.start(Which::Installed, Standard::Error) {
            Ok(next) => self.next = Some(next.handed(held, true)),
            Err(error) => self.refuse_upgrade(error.to_string()),
        }
    }

    fn give_up_upgrade(&mut self, why: String) {
        if let Some(next) = self.next.take() {
            let said = next.said.clone();
            self.fence(next);
            self.refuse_upgrade(said.unwrap_or(why));
        }
    }

    fn refuse_upgrade(&self, why: String) {
        if let Some(worker) = &self.worker {
            let _heard = worker.channel.send(&Packet::Refused(why));
        }
    }

    /// When this process is to become what an upgrade has brought: once that has shown that it lives, and nothing is under way.
    fn renewal(&self) -> Option<Instant> {
        let worker = self.worker.as_ref().filter(|worker| worker.form == FORM && worker.is_ready && !worker.is_cut)?;
        let is_busy = self.next.is_some() || !self.fenced.is_empty() || self.telling.listener().is_some();
        let is_due = self.which == Which::Installed && !is_busy;
        let lived = worker.went.filter(|_| is_due)? + LIVED;
        Some(self.passed_on.map_or(lived, |asked| lived.max(asked + FENCED)))
    }

    fn renew(&mut self) {
        let ground = if self.setting.is_foreground { super::FOREGROUND } else { super::BACKGROUND };
        let (Some(held), Some(worker)) = (&self.held, &mut self.worker) else { return };
        let _failed = self.program.renew(worker, held, (self.before, self.upgrades), ground);
        // It keeps on as it is, until the next upgrade.
        worker.form = 0;
    }

    /// Looks who has ended.
    fn reap(&mut self) -> Step {
        self.fenced.retain_mut(|(worker, _)| worker.ended().is_none());
        if let Some(how) = self.worker.as_mut().and_then(Worker::ended) {
            if let Some(worker) = self.worker.take() {
                self.bury(worker, how)?;
            }
        }
        if let Some(how) = self.next.as_mut().and_then(Worker::ended) {
            if let Some(mut next) = self.next.take() {
                // Why, if it has said so. It has nothing else to say any more.
                let _said = heard(Some(&mut next));
                self.refuse_upgrade(next.death(how).cause());
            }
        }
        self.go();
        Ok(())
    }

    fn see_device(&mut self) -> Step {
        let Some(held) = &self.held else { return Ok(()) };
        if refusing::mount(held.device.as_fd()) == Mount::Gone {
            return Err(End::Exit(0));
        }
        match self.refusing.as_mut().map(Refusing::refuse_some) {
            Some(Ok(Mount::Gone)) => return Err(End::Exit(0)),
            Some(Err(_)) => {
                // Another time: whoever asks is still there.
                self.refusing = None;
                self.down = Some(Instant::now());
            }
            _ => {}
        }
        Ok(())
    }

    /// Tells whoever asks what is wrong.
    fn tell(&self) {
        let (Some(held), Some(trouble)) = (&self.held, self.deaths.trouble()) else { return };
        let listener = held.listener.try_clone().map(UnixListener::from);
        let Ok((mut client, _)) = listener.and_then(|listener| listener.accept()) else {
            // No descriptors, most likely, and whoever asks is still there.
            return std::thread::sleep(GLANCE);
        };
        let answer =
            format!("{}\n", serde_json::json!({ "troubled": { "message": trouble, "keeper": std::process::id() } }));
        // Whoever has gone does not want to know any more.
        let _heard = client.write_all(answer.as_bytes());
    }
}

/// Says that a service manager hears nothing.
fn complain_of(told: io::Result<()>) {
    if let Err(error) = told {
        let _heard = writeln!(io::stderr(), "crfs: the service manager was not told ($NOTIFY_SOCKET): {error}");
    }
}

/// How long one may take that is to go on.
fn starts_until(worker: &Worker) -> Instant {
    worker.started + STARTING
}

/// What a worker has said, and whether it will say nothing any more.
fn heard(worker: Option<&mut Worker>) -> (Vec<Packet>, bool) {
    let mut packets = Vec::new();
    let Some(worker) = worker else { return (packets, false) };
    loop {
        match worker.channel.receive_now() {
            Ok(Some(Packet::Failed(why))) => worker.said = Some(why),
            Ok(Some(packet)) => packets.push(packet),
            Ok(None) => return (packets, true),
            // A worker of another version may say what is not known here.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
            // It has gone without having heard all; what it has said is behind this.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(_) => return (packets, false),
        }
    }
}
