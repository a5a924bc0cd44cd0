//! What files name: who reads a module reads the modules that it imports, and those that they import.
//!
//! ```text
//! a small file is read, or guessed --> when all of it is there: its words (words.rs)
//! a word                           --> a file of that name beside it, or where others were read (shelves.rs, shelf.rs)
//! that file                        --> is wished for, and looked into as well, a few steps far
//! ```
//!
//! Nothing is known of any language but how names become paths, and what Python reads when it starts. What the image's command is given as a
//! script names modules that may be anywhere.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::super::files::{Node, Place};
use super::super::image::{Image, Located, SMALL, WHOLE};
use super::super::stack::Stack;
use super::super::stretch::Stretch;
use super::super::wish::{Origin, Wish};
use super::shelves::{Shelves, Words};
use super::{Ask, Found, Known, News, Policy, Study};
use crate::index::Damaged;

/// Bytes of the largest file that is looked into.
pub(in super::super) const LOOKED_INTO: u64 = 512 << 10;

/// How many steps from what was read a file may be that is looked into.
const STEPS: usize = 4;

/// Files that are looked into in one go, before a wish is made a request.
const AT_A_TIME: usize = 4;

/// Files that were named and not read that are remembered.
const MOST_TOLD: usize = 16 << 10;

/// Files that are waited for to be looked into, and that are wished for.
const WAITING: usize = 256;
const WISHED: usize = 1024;

/// Wished files this near each other are one request, which costs about as much as the bytes between them.
const GAP: u64 = 64 << 10;

/// What is named by the command's script, and not read yet, counts for nothing up to so many bytes.
const COMMAND: u64 = 8 << 20;

/// What the image's command starts with has the last turns.
const COMMAND_TURNS: u32 = u32::MAX - 64;

/// How a file came to be named.
#[derive(Clone)]
struct Told {
    /// When it is likely read: the newest read first, what that names in the order of the names, and behind each what it names itself.
    turn: Turn,
    /// Whether it counts for what may be guessed wrong: it does not where it follows from the image's command.
    counts: bool,
}

/// Reads are counted down; then the place of each name among those beside it.
type Turn = Vec<u32>;

impl Told {
    fn steps(&self) -> usize {
        self.turn.len().saturating_sub(1)
    }
}

/// A file that is looked into when its checks are there.
struct Waiting {
    file: Node,
    place: Place,
    checks: Range<u32>,
    told: Told,
    /// What it names may be anywhere.
    anywhere: bool,
}

/// What a file was found to say.
struct Studied {
    file: Node,
    told: Told,
    words: Words,
    /// What that names, where it may be anywhere.
    anywhere: Option<Vec<Node>>,
}

impl Studied {
    /// Takes a while.
    fn of(image: &Image, Waiting { file, place, told, anywhere, .. }: Waiting) -> Option<Self> {
        let words = Words::of(&image.peek(place)?);
        let anywhere = anywhere.then(|| words.name_anywhere(image, file));
        Some(Self { file, told, words, anywhere })
    }
}

#[derive(Default)]
pub(super) struct Mentions {
    waiting: VecDeque<Waiting>,
    told: HashMap<Node, Told>,
    /// What is to be fetched.
    wished: BTreeMap<Turn, Node>,
    /// What is left of files that are fetched in pieces.
    large: Stack<Stretch>,
    /// How many files were read.
    reads: u32,
    /// How many files the image's command starts with.
    commands: u32,
    shelves: Shelves,
    command_bytes: u64,
    /// What was found out meanwhile.
    studied: Arc<Mutex<Vec<Studied>>>,
}

impl Policy for Mentions {
    fn origins(&self) -> &'static [Origin] {
        &[Origin::Mention]
    }

    fn told(&mut self, known: &Known<'_>, news: &News<'_>, found: &mut Found) -> Result<(), Damaged> {
        match news {
            // Where everything has been there so far there is nothing to guess.
            News::Read(read) if read.is_first && (read.missed || known.history.has_asked()) => {
                // Nor where everything is fetched anyway.
                if known.history.reads_all() { Ok(()) } else { self.read(known.image, read.file, found) }
            }
            News::Starts(file) => self.starts(known, *file, found),
            News::Studied => self.learn(known, found),
            _ => Ok(()),
        }
    }

    fn next(&mut self, known: &Known<'_>, ask: Ask, found: &mut Found) -> Result<Option<Wish>, Damaged> {
        if !ask.is_over {
            if let Some(wish) = self.large.next(known.image, ask.size, Origin::Mention)? {
                return Ok(Some(wish));
            }
        }
        while !known.image.here().is_spent() {
            let Some(Wished { turn, file, counts }) = self.next_wished(ask.is_over) else { break };
            if let Some(wish) = self.wish_for(known, file, counts, ask.size, found)? {
                return Ok(Some(wish));
            }
            if known.image.here().is_spent() {
                // Whether it is here is not known yet.
                self.wished.insert(turn, file);
            }
        }
        Ok(None)
    }

    fn studies(&mut self, known: &Known<'_>, found: &mut Found) -> Result<Vec<Study>, Damaged> {
        let ready = self.ready(known.image, found)?;
        Ok(ready.into_iter().map(|waiting| self.study(waiting)).collect())
    }

    fn foresees(&self, file: Node) -> bool {
        self.told.contains_key(&file)
    }

    fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}

impl Mentions {
    /// A file was read for the first time.
    fn read(&mut self, image: &Image, file: Node, found: &mut Found) -> Result<(), Damaged> {
        if let Some(dir) = image.dir(file) {
            self.shelves.search(image.files(), dir);
        }
        self.reads = self.reads.saturating_add(1);
        if let Some(told) = self.told.remove(&file) {
            self.wished.remove(&told.turn);
        }
        let turn = COMMAND_TURNS.saturating_sub(self.reads);
        self.look_into(image, file, Told { turn: vec![turn], counts: true }, false, found)
    }

    /// The image's command starts with a program, or is given a script.
    fn starts(&mut self, known: &Known<'_>, file: Node, found: &mut Found) -> Result<(), Damaged> {
        // The program comes last here, and first in turn.
        let turn = u32::MAX.saturating_sub(self.commands.saturating_mul(2)).max(COMMAND_TURNS + 2);
        self.commands = self.commands.saturating_add(1);
        if let Some(read_at_start) = self.shelves.search_own_of(known.image, file) {
            self.tell(known, read_at_start, &Told { turn: vec![turn - 1], counts: false }, found)?;
        }
        self.look_into(known.image, file, Told { turn: vec![turn], counts: false }, true, found)
    }

    /// A file is looked into once all of it is there; `anywhere`: what it names may be anywhere.
    fn look_into(
        &mut self,
        image: &Image,
        file: Node,
        told: Told,
        anywhere: bool,
        found: &mut Found,
    ) -> Result<(), Damaged> {
        let Some(located) = image.locate(file)?.filter(|located| located.place.range.len() <= LOOKED_INTO) else {
            return Ok(());
        };
        // What is guessed is fetched only where that is over a network.
        let comes = located.layer.is_remote() || told.steps() == 0;
        if comes && located.size()? <= SMALL {
            let (place, checks) = (located.place, located.layer.checks(located.place.range)?);
            self.waiting.push_front(Waiting { file, place, checks, told, anywhere });
            self.waiting.truncate(WAITING);
            found.may_be_here = true;
        }
        Ok(())
    }

    /// A few of the files that are waited for, of which all is there by now.
    fn ready(&mut self, image: &Image, found: &mut Found) -> Result<Vec<Waiting>, Damaged> {
        let mut ready = Vec::new();
        for waiting in std::mem::take(&mut self.waiting) {
            let Some(layer) = image.layer(waiting.place.layer) else { continue };
            found.may_be_here |= ready.len() == AT_A_TIME;
            if ready.len() < AT_A_TIME && layer.has(&waiting.checks)? {
                ready.push(waiting);
            } else {
                self.waiting.push_back(waiting);
            }
        }
        self.waiting.truncate(WAITING);
        Ok(ready)
    }

    fn study(&self, waiting: Waiting) -> Study {
        let studied = Arc::clone(&self.studied);
        Box::new(move |image| {
            let found = Studied::of(image, waiting);
            studied.lock().unwrap_or_else(PoisonError::into_inner).extend(found);
        })
    }

    /// Wishes for what was found that files name.
    fn learn(&mut self, known: &Known<'_>, found: &mut Found) -> Result<(), Damaged> {
        let studied = std::mem::take(&mut *self.studied.lock().unwrap_or_else(PoisonError::into_inner));
        for Studied { file, told, words, anywhere } in studied {
            let named = anywhere.unwrap_or_else(|| self.shelves.named_by(known.image, file, &words));
            self.tell(known, named, &told, found)?;
        }
        Ok(())
    }

    /// Files were named, in this order.
    fn tell(&mut self, known: &Known<'_>, named: Vec<Node>, by: &Told, found: &mut Found) -> Result<(), Damaged> {
        for (at, file) in (0..).zip(named) {
            let told = Told { turn: [by.turn.as_slice(), &[at]].concat(), counts: by.counts };
            if !known.history.has_read(file) && self.is_better(file, &told) {
                self.wish_in_turn(known.image, file, told, found)?;
            }
        }
        while self.wished.len() > WISHED {
            self.wished.pop_last();
        }
        Ok(())
    }

    /// Whether it is news that a file was named.
    fn is_better(&self, file: Node, told: &Told) -> bool {
        match self.told.get(&file) {
            Some(before) => before.turn > told.turn || (told.counts && !before.counts),
            None => self.told.len() < MOST_TOLD,
        }
    }

    fn wish_in_turn(&mut self, image: &Image, file: Node, told: Told, found: &mut Found) -> Result<(), Damaged> {
        let before = self.told.insert(file, told.clone());
        if let Some(before) = &before {
            self.wished.remove(&before.turn);
        }
        self.wished.insert(told.turn.clone(), file);
        if before.is_some() {
            return Ok(());
        }
        if self.shelves.is_native(file) {
            found.news.push_back(News::Linked(file));
        }
        if told.steps() <= STEPS { self.look_into(image, file, told, false, found) } else { Ok(()) }
    }

    /// The next file that is wished for; it is not given again.
    fn next_wished(&mut self, is_over: bool) -> Option<Wished> {
        let counts = |file: &Node| self.told.get(file).is_none_or(|told| told.counts);
        let (turn, counts) =
            self.wished.iter().map(|(turn, file)| (turn, counts(file))).find(|(_, counts)| !is_over || !counts)?;
        let turn = turn.clone();
        Some(Wished { file: self.wished.remove(&turn)?, turn, counts })
    }

    /// What to fetch for a file that was named, at most about `size` bytes.
    fn wish_for(
        &mut self,
        known: &Known<'_>,
        file: Node,
        counts: bool,
        size: u64,
        found: &mut Found,
    ) -> Result<Option<Wish>, Damaged> {
        let Some(located) = known.image.locate(file)?.filter(|_| !known.history.has_read(file)) else {
            return Ok(None);
        };
        let bytes = located.size()?;
        let left = if counts { WHOLE } else { COMMAND.saturating_sub(self.command_bytes) };
        if !located.layer.is_remote() || bytes > left.min(WHOLE) {
            return Ok(None);
        }
        let layer = located.place.layer;
        if bytes > size {
            self.spend(bytes, counts);
            let whole = Stretch::new(layer, located.units.clone(), located.units.start);
            return self.in_pieces(known.image, whole, counts, size, found);
        }
        let wished = |file: &Node| self.told.contains_key(file) && !known.history.has_read(*file);
        let Some(units) = run_of(known.image, file, &located, size.min(left), wished)? else { return Ok(None) };
        self.spend(known.image.size(layer, &units)?, counts);
        Ok(Some(Wish { counts, ..Wish::new(Origin::Mention, layer, units) }))
    }

    /// A large file; of one that the command needs its turn comes.
    fn in_pieces(
        &mut self,
        image: &Image,
        whole: Stretch,
        counts: bool,
        size: u64,
        found: &mut Found,
    ) -> Result<Option<Wish>, Damaged> {
        if !counts {
            found.news.push_back(News::Needed(whole));
            return Ok(None);
        }
        self.large.push(whole);
        self.large.next(image, size, Origin::Mention)
    }

    /// So much is fetched, of what counts for what may be guessed wrong, or of what the command names.
    fn spend(&mut self, bytes: u64, counts: bool) {
        if !counts {
            self.command_bytes = self.command_bytes.saturating_add(bytes);
        }
    }
}

/// A file that is to be fetched.
struct Wished {
    turn: Turn,
    file: Node,
    /// Whether it is one of those that are counted.
    counts: bool,
}

/// The units of a file, if any is not there, made longer over `wished` files near it, up to `size` bytes and no further than over [`GAP`].
fn run_of(
    image: &Image,
    file: Node,
    Located { place, units, .. }: &Located<'_>,
    size: u64,
    wished: impl Fn(&Node) -> bool,
) -> Result<Option<Range<u32>>, Damaged> {
    let layer = place.layer;
    if !image.is_absent(layer, units)? {
        return Ok(None);
    }
    let mut run = units.clone();
    for side in image.neighbourhood().beside(image.files(), file) {
        for next in side {
            let Some(Located { units, .. }) = image.locate(next)?.filter(|next| next.place.layer == layer) else {
                break;
            };
            let between = run.end.min(units.end)..run.start.max(units.start);
            let joined = run.start.min(units.start)..run.end.max(units.end);
            if image.size(layer, &between)? > GAP || image.size(layer, &joined)? > size {
                break;
            }
            if wished(&next) && image.is_absent(layer, &units)? {
                run = joined;
            }
        }
    }
    Ok(Some(run))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::readahead::fake::{Lab, UNIT};

    fn lab() -> Lab {
        let dirs = ["/", "/app/", "/lib/"].map(|dir| (dir, Vec::new()));
        let files = [
            ("/app/first.py", b"import second\nimport large\n".to_vec()),
            ("/app/large.py", vec![b' '; 8 * usize::try_from(UNIT).unwrap()]),
            ("/app/second.py", b"import third, _native\n".to_vec()),
            ("/app/_native.so", vec![1; 100]),
            ("/app/third.py", vec![b' '; 100]),
            ("/lib/unnamed.py", vec![b' '; 100]),
        ];
        Lab::of(&[&dirs[..], &files].concat())
    }

    fn next(lab: &Lab, mentions: &mut Mentions) -> Option<Range<u32>> {
        lab.next(mentions, Origin::Mention)
    }

    #[test]
    fn what_a_file_names_comes_in_the_order_in_which_it_is_read() {
        let (mut lab, mut mentions) = (lab(), Mentions::default());
        let found = lab.read(&mut mentions, "/app/first.py", 0..1);
        assert!(found.may_be_here && mentions.is_waiting());
        assert!(next(&lab, &mut mentions).is_none(), "it was not looked into");
        lab.study(&mut mentions);
        assert!(mentions.foresees(lab.node("/app/second.py")) && !mentions.foresees(lab.node("/lib/unnamed.py")));
        // As near as it is, what is between comes with it no sooner than it is its turn.
        assert_eq!(next(&lab, &mut mentions), Some(lab.units("/app/second.py")));
        let found = lab.study(&mut mentions);
        let linked =
            found.news.iter().any(|news| matches!(news, News::Linked(file) if *file == lab.node("/app/_native.so")));
        assert!(linked, "it may need libraries");
        let [large, native, third] = ["/app/large.py", "/app/_native.so", "/app/third.py"].map(|path| lab.units(path));
        let wishes: [_; 4] = std::array::from_fn(|_| next(&lab, &mut mentions));
        assert_eq!(wishes[0], Some(native.start..third.end), "in one request, before what was named after it");
        assert_eq!(wishes[1..], [Some(large.start..large.start + 4), Some(large.start + 4..large.end), None]);
    }

    #[test]
    fn when_too_much_was_guessed_wrong_only_the_commands_names_go_on() {
        let (mut lab, mut mentions) = (lab(), Mentions::default());
        lab.read(&mut mentions, "/app/first.py", 0..1);
        lab.study(&mut mentions);
        let ask = Ask { turn: Origin::Mention, size: 4 * UNIT, is_over: true };
        assert!(lab.ask(&mut mentions, ask).is_none());
        let mut mentions = Mentions::default();
        lab.tell(&mut mentions, &News::Starts(lab.node("/app/first.py")));
        lab.study(&mut mentions);
        let wish = lab.ask(&mut mentions, ask).unwrap();
        assert!(!wish.counts && wish.units == lab.units("/app/second.py"));
    }
}
