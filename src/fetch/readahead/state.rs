//! The policies of a mount, what they share, and whose wish comes next.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::plan::Tail;
use super::files::Node;
use super::history::{History, Last};
use super::image::Image;
use super::policy::{self, Ask, Found, Known, News, Policy, Read, Study};
use super::wish::{Origin, Wish};
use crate::blob::ByteRange;
use crate::index::Damaged;

/// Requests that are put off.
const MOST_LATE: usize = 16;

pub(super) struct State {
    pub(super) history: History,
    image: Arc<Image>,
    policies: Vec<Box<dyn Policy>>,
    /// What is put off, since its slice is coming for another guess.
    late: VecDeque<Wish>,
    /// Whether something came that may be looked into.
    came: Arc<AtomicBool>,
}

impl State {
    pub(super) fn new(image: Arc<Image>, history: History, came: Arc<AtomicBool>) -> Self {
        Self { history, image, policies: policy::all(), late: VecDeque::new(), came }
    }

    /// Whether a policy waits for contents to come.
    pub(super) fn is_waiting(&self) -> bool {
        self.policies.iter().any(|policy| policy.is_waiting())
    }

    /// How far a miss in a large file goes on.
    pub(super) fn tail(&self, file: Node, end: u64, bytes: u64) -> Option<Tail> {
        self.policies.iter().find_map(|policy| policy.tail(file, end, bytes))
    }

    /// Whether a hit in this file tells nothing. Waits for no disk: whoever asks may be the thread that answers the kernel.
    pub(super) fn is_old(&self, layer: usize, file: Node, checks: &Range<u32>) -> bool {
        !self.history.may_be_guessed(layer, checks) && (self.is_known(file) || self.image.was_all_here())
    }

    fn is_known(&self, file: Node) -> bool {
        self.history.has_read(file) && !self.policies.iter().any(|policy| policy.follows(file))
    }

    /// A read of `range`, which `checks` cover; tells whether there may be something to do now.
    pub(super) fn noticed(
        &mut self,
        layer: usize,
        file: Node,
        range: ByteRange,
        checks: Range<u32>,
        missed: bool,
    ) -> Result<bool, Damaged> {
        let used = self.history.used(layer, checks);
        if !missed && (self.is_known(file) || self.image.is_all_here(layer)) {
            return Ok(used);
        }
        let image = Arc::clone(&self.image);
        let Some(located) = image.locate(file)? else { return Ok(false) };
        let here = located.layer.over(range)?;
        if missed {
            image.here().missed(layer, &here);
        } else {
            image.survey()?;
        }
        let rest = ByteRange { start: range.start, end: located.place.range.end };
        let is_first = self.history.note(file, Last { layer, unit: here.end.saturating_sub(1), rest });
        let is_foreseen = self.policies.iter().any(|policy| policy.foresees(file));
        let size = located.size()?;
        self.tell(News::Read(Read { file, located, size, range, here, missed, is_first, is_foreseen }))?;
        Ok(true)
    }

    /// Tells all policies, and what they then find.
    pub(super) fn tell(&mut self, news: News<'_>) -> Result<(), Damaged> {
        let mut found = Found::default();
        let told = self.tell_each(&news, &mut found);
        self.spread(found)?;
        told
    }

    fn tell_each(&mut self, news: &News<'_>, found: &mut Found) -> Result<(), Damaged> {
        let known = Known { image: &self.image, history: &self.history };
        self.policies.iter_mut().try_for_each(|policy| policy.told(&known, news, found))
    }

    /// What one policy has found may be of use to another.
    fn spread(&mut self, mut found: Found) -> Result<(), Damaged> {
        loop {
            if std::mem::take(&mut found.may_be_here) {
                self.came.store(true, Ordering::Release);
            }
            let Some(news) = found.news.pop_front() else { return Ok(()) };
            self.tell_each(&news, &mut found)?;
        }
    }

    /// What policies have to find out about what came, while nobody waits for them.
    pub(super) fn studies(&mut self) -> Result<Vec<Study>, Damaged> {
        let (mut studies, mut found) = (Vec::new(), Found::default());
        let known = Known { image: &self.image, history: &self.history };
        for policy in &mut self.policies {
            studies.extend(policy.studies(&known, &mut found)?);
        }
        self.spread(found)?;
        Ok(studies)
    }

    /// What to fetch next, at most about `size` bytes of it, but for what `is_coming` says that another brings.
    pub(super) fn next(
        &mut self,
        size: u64,
        is_coming: impl Fn(&Wish) -> Result<bool, Damaged>,
    ) -> Result<Option<Wish>, Damaged> {
        self.image.here().start();
        if self.history.is_over() {
            self.late.retain(|wish| !wish.counts);
        }
        for _ in 0..self.late.len() {
            let Some(wish) = self.late.pop_front() else { break };
            if !is_coming(&wish)? {
                return Ok(Some(wish));
            }
            self.late.push_back(wish);
        }
        while let Some(wish) = self.newest(size)? {
            if self.late.len() >= MOST_LATE || !is_coming(&wish)? {
                return Ok(Some(wish));
            }
            self.late.push_back(wish);
        }
        Ok(None)
    }

    /// The same of what is newest.
    fn newest(&mut self, size: u64) -> Result<Option<Wish>, Damaged> {
        self.tell(News::Asked)?;
        let is_over = self.history.is_over();
        for turn in Origin::TURNS.into_iter().filter(|turn| !is_over || turn.goes_on_when_over()) {
            if let Some(wish) = self.ask(Ask { turn, size, is_over })? {
                return Ok(Some(wish));
            }
        }
        Ok(None)
    }

    /// Asks the policies whose turn it is.
    fn ask(&mut self, ask: Ask) -> Result<Option<Wish>, Damaged> {
        let mut found = Found::default();
        let known = Known { image: &self.image, history: &self.history };
        let mut asked = self.policies.iter_mut().filter(|policy| policy.origins().contains(&ask.turn));
        let wish = asked.find_map(|policy| policy.next(&known, ask, &mut found).transpose()).transpose();
        self.spread(found)?;
        wish
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Lab, UNIT};
    use super::*;

    /// A file that is read, one that it names, and one near it; and a program.
    fn state() -> (Lab, State) {
        let dirs = ["/", "/app/", "/bin/"].map(|dir| (dir, Vec::new()));
        let unit = usize::try_from(UNIT).unwrap();
        let files = [
            ("/app/far.py", vec![b' '; 100]),
            ("/app/large", vec![1; 2 << 20]),
            ("/app/first.py", [b"import far\n".to_vec(), vec![b' '; unit]].concat()),
            ("/app/near", vec![1; 100]),
            ("/bin/large", vec![1; 2 << 20]),
            ("/bin/program", vec![1; 100]),
        ];
        let lab = Lab::of(&[&dirs[..], &files].concat());
        let history = History::new(u64::MAX, Arc::new(super::super::underway::Underway::new(1)));
        let state = State::new(Arc::clone(&lab.image), history, Arc::default());
        (lab, state)
    }

    fn read(lab: &Lab, state: &mut State, path: &str) {
        let place = lab.image.files().place(lab.node(path)).unwrap();
        lab.bring(lab.units(path).start..lab.units(path).start + 1);
        let range = ByteRange { start: place.range.start, end: place.range.start + 1 };
        assert!(state.noticed(0, lab.node(path), range, 0..0, true).unwrap());
    }

    #[test]
    fn each_policy_has_its_turn_and_wishes_say_whose_they_are() {
        let (lab, mut state) = state();
        read(&lab, &mut state, "/app/first.py");
        state.tell(News::Starts(lab.node("/bin/program"))).unwrap();
        let mut next = || {
            let wish = state.next(1 << 20, |_| Ok(false)).unwrap()?;
            lab.bring(wish.units.clone());
            state.studies().unwrap().into_iter().for_each(|study| study(&lab.image));
            state.tell(News::Studied).unwrap();
            Some((wish.origin, wish.units, wish.counts))
        };
        let [rest, far, program, near] =
            ["/app/first.py", "/app/far.py", "/bin/program", "/app/near"].map(|path| lab.units(path));
        assert_eq!(next(), Some((Origin::Rest, rest.start + 1..rest.end, true)));
        assert_eq!(next(), Some((Origin::Mention, far, true)));
        assert_eq!(next(), Some((Origin::Command, program, false)));
        assert_eq!(next(), Some((Origin::Near, near, true)));
        assert_eq!(next(), None);
    }

    #[test]
    fn what_another_request_brings_is_put_off() {
        let (lab, mut state) = state();
        read(&lab, &mut state, "/app/first.py");
        let rest = |wish: &Wish| Ok(wish.origin == Origin::Rest);
        assert_eq!(state.next(1 << 20, rest).unwrap().map(|wish| wish.origin), Some(Origin::Near));
        assert_eq!(state.next(1 << 20, |_| Ok(false)).unwrap().map(|wish| wish.origin), Some(Origin::Rest));
    }
}
