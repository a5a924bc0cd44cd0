//! Who has sent which part of a blob, so that whoever sends wrong bytes is not asked for them again.

use std::collections::VecDeque;

use crate::blob::ByteRange;

/// Parts that are remembered: what is wrong is found out soon after it came.
const REMEMBERED: usize = 256;

/// Whoever has sent so many wrong parts of a blob is asked for nothing of it.
const MOST_WRONG: usize = 64;

/// Of one blob, by the places that are asked for it.
#[derive(Debug)]
pub(super) struct Blame {
    sent: VecDeque<(usize, ByteRange)>,
    distrusted: Vec<Vec<ByteRange>>,
}

impl Blame {
    pub(super) fn new(places: usize) -> Self {
        Self { sent: VecDeque::new(), distrusted: vec![Vec::new(); places] }
    }

    pub(super) fn sent(&mut self, place: usize, range: ByteRange) {
        if let Some((_, last)) = self.sent.front_mut().filter(|(last, old)| *last == place && old.end == range.start) {
            last.end = range.end;
            return;
        }
        self.sent.push_front((place, range));
        self.sent.truncate(REMEMBERED);
    }

    pub(super) fn is_distrusted(&self, place: usize, range: ByteRange) -> bool {
        let wrong = self.distrusted.get(place);
        wrong.is_some_and(|wrong| wrong.len() >= MOST_WRONG || wrong.iter().any(|wrong| overlap(*wrong, range)))
    }

    /// Something in a range is wrong. Who has sent it; where nobody would be left to ask, all are asked once more.
    pub(super) fn distrust(&mut self, range: ByteRange) -> Vec<usize> {
        let mut liars: Vec<usize> =
            self.sent.iter().filter(|(_, sent)| overlap(*sent, range)).map(|(place, _)| *place).collect();
        liars.sort_unstable();
        liars.dedup();
        self.sent.retain(|(_, sent)| !overlap(*sent, range));
        for liar in &liars {
            if let Some(wrong) = self.distrusted.get_mut(*liar).filter(|wrong| wrong.len() < MOST_WRONG) {
                wrong.push(range);
            }
        }
        if (0..self.distrusted.len()).all(|place| self.is_distrusted(place, range)) {
            for wrong in &mut self.distrusted {
                let is_for_good = wrong.len() >= MOST_WRONG;
                wrong.retain(|wrong| !is_for_good && !overlap(*wrong, range));
            }
        }
        liars
    }
}

fn overlap(one: ByteRange, other: ByteRange) -> bool {
    !one.intersection(&other).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange { start, end }
    }

    #[test]
    fn who_has_sent_what_is_wrong_is_not_asked_for_it_again() {
        let mut blame = Blame::new(3);
        blame.sent(0, range(0, 100));
        blame.sent(1, range(100, 200));
        blame.sent(1, range(200, 300));
        assert_eq!(blame.distrust(range(250, 260)), [1]);
        assert!(blame.is_distrusted(1, range(0, 251)) && !blame.is_distrusted(1, range(0, 250)));
        assert!(!blame.is_distrusted(0, range(0, 300)) && !blame.is_distrusted(2, range(0, 300)));
        assert!(blame.distrust(range(250, 260)).is_empty(), "nobody has sent it since");
        blame.sent(0, range(240, 270));
        assert_eq!(blame.distrust(range(250, 260)), [0]);
        blame.sent(2, range(250, 260));
        assert_eq!(blame.distrust(range(250, 260)), [2]);
        assert!((0..3).all(|place| !blame.is_distrusted(place, range(250, 260))), "somebody has to be asked");
    }

    #[test]
    fn who_sends_much_that_is_wrong_is_asked_for_nothing() {
        let mut blame = Blame::new(2);
        for part in 0..MOST_WRONG as u64 {
            assert!(!blame.is_distrusted(1, range(9000, 9001)));
            blame.sent(1, range(part * 10, part * 10 + 10));
            blame.distrust(range(part * 10, part * 10 + 1));
        }
        assert!(blame.is_distrusted(1, range(9000, 9001)) && !blame.is_distrusted(0, range(9000, 9001)));
        (0..2 * REMEMBERED as u64).for_each(|part| blame.sent(0, range(part * 20, part * 20 + 10)));
        assert_eq!(blame.sent.len(), REMEMBERED);
    }
}
