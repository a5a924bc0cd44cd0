//! Who brings what: readers join what is on its way, and requests are made for what is not.

use std::ops::Range;
use std::sync::Arc;
use std::sync::PoisonError;

use tracing::Instrument as _;

use super::asker::{Guess, Planned, Reading};
use super::assemble::Wanted;
use super::flight::Waiter;
use super::job::Job;
use super::kept::Kept;
use super::lacking::Presence;
use super::layer::Look;
use super::plan::{self, Run};
use super::seams::{Head, Lender};
use super::{Error, Layer};
use crate::blob::ByteRange;
use crate::cache::State;
use crate::index::Damaged;

/// Requests that one guess is made into: what is missing may be scattered.
const MOST_RUNS: usize = 3;

/// Checks of the next unit that are looked at for one that is missing.
const LOOKS: u32 = 64;

impl Layer {
    /// Joins the flights that bring `missing` (ascending) and sends requests for what nobody brings yet.
    pub(super) fn wait_for(self: &Arc<Self>, missing: &[u32], reading: Option<&dyn Reading>) -> Result<Look, Error> {
        let waiting = self.gate.reader();
        // What is wrong with the index elsewhere is no matter of this read.
        let tail = reading.and_then(|reading| reading.tail().ok().flatten());
        let goes_on = tail.is_some_and(|tail| tail.goes_on);
        let (mut waiters, mut jobs, mut planned) = (Vec::new(), Vec::new(), Planned::default());
        {
            // One reader plans at a time: what it finds brought by nobody it then takes, so that no two requests have a unit in common.
            let _planning = self.planning.lock().unwrap_or_else(PoisonError::into_inner);
            let nobody = self.join(missing, &mut waiters)?;
            let mut runs = plan::runs(&self.index, &nobody)?;
            planned.needed = runs.iter().map(|run| run.compressed.len()).sum();
            if let (Some(tail), Some(&last)) = (tail, nobody.last()) {
                if let Err(error) = plan::extend(&self.index, &mut runs, last, tail, |check| self.is_missing(check)) {
                    tracing::debug!(%error, "nothing is fetched behind a miss");
                }
                runs = plan::joined(&self.index, runs);
            }
            for run in runs {
                let (job, brought) = self.job(run, missing, goes_on, &mut planned)?;
                waiters.extend(brought);
                jobs.extend(job);
            }
        }
        // Before anything else is thought about: a reader waits for them.
        jobs.into_iter().for_each(|job| drop(tokio::spawn(job.run().in_current_span())));
        reading.iter().for_each(|reading| reading.asked(&planned));
        Ok(Look::Wait { waiters, waiting })
    }

    /// Joins the flights of those of `missing` that are on their way; gives those that nobody brings.
    fn join(&self, missing: &[u32], waiters: &mut Vec<Waiter>) -> Result<Vec<u32>, Error> {
        let mut nobody = Vec::new();
        for &check in missing {
            if let Some(error) = self.failed.get(&check) {
                return Err(error);
            }
            match self.flights.join(check) {
                Some(waiter) => waiters.push(waiter),
                // It may have come since it was looked for; then there is nobody to wait for either.
                None if self.is_missing(check) => nobody.push(check),
                None => {}
            }
        }
        Ok(nobody)
    }

    /// Who brings what is not there of some units, and requests for what nobody brings.
    pub(super) fn lacking(&self, units: Range<u32>) -> Result<(Vec<Waiter>, Vec<Run>), Damaged> {
        let mut waiters = Vec::new();
        for unit in units.clone() {
            self.on_their_way(plan::checks_of_unit(&self.index, unit)?.into_iter(), &mut waiters);
        }
        // Looked for afterwards: what has failed meanwhile is missing.
        Ok((waiters, self.missing_runs(units)?))
    }

    fn on_their_way(&self, checks: impl Iterator<Item = u32>, waiters: &mut Vec<Waiter>) {
        waiters.extend(checks.filter_map(|check| self.flights.join(check)));
    }

    /// Takes the duty for what of the first run is still missing, and the place of one who waits for what others have begun to bring; also
    /// gives back what is to be done after it. Up to the unit `until`, others will go on behind it.
    pub(super) fn take_first(
        self: &Arc<Self>,
        runs: Vec<Run>,
        until: u32,
        waiters: &mut Vec<Waiter>,
    ) -> Result<(Option<Job>, Vec<Run>), Error> {
        let _planning = self.planning.lock().unwrap_or_else(PoisonError::into_inner);
        let mut runs = runs.into_iter();
        let Some(run) = runs.next() else { return Ok((None, Vec::new())) };
        let wanted = plan::checks_in(&self.index, &run)?;
        self.on_their_way(wanted.iter().map(|wanted| wanted.check), waiters);
        let missing: Vec<u32> =
            wanted.iter().map(|wanted| wanted.check).filter(|check| self.is_missing(*check)).collect();
        let mut left = plan::runs(&self.index, &missing)?.into_iter();
        let job = left.next().map(|run| {
            let goes_on = run.units.end < until;
            self.job(run, &[], goes_on, &mut Planned::default())
        });
        let job = job.transpose()?;
        Ok((job.and_then(|(job, _)| job), left.chain(runs).collect()))
    }

    /// Requests for what is missing of some units, for nobody in particular. What cannot be had without much more is left.
    pub(super) fn guess(
        self: &Arc<Self>,
        units: Range<u32>,
        goes_on: bool,
        ticket: &dyn Fn(ByteRange) -> Box<dyn Guess>,
    ) -> Result<Vec<(Job, Planned)>, Error> {
        let _planning = self.planning.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = plan::compressed(&self.index, &units)?;
        let mut guesses = Vec::new();
        if self.source.is_sent_whole() {
            return Ok(guesses);
        }
        for run in plan::joined(&self.index, self.missing_runs(units)?) {
            if run.compressed.len() > asked.saturating_mul(2).saturating_add(plan::MAX_REQUEST) {
                continue;
            }
            let mut planned = Planned::default();
            if guesses.len() == MOST_RUNS {
                break;
            }
            if let (Some(job), _) = self.job(run, &[], goes_on, &mut planned)? {
                let ticket = ticket(job.compressed());
                guesses.push((job.for_nobody(ticket), planned));
            }
        }
        Ok(guesses)
    }

    /// What is missing of some units, and is not on its way.
    pub(super) fn missing_runs(&self, units: Range<u32>) -> Result<Vec<Run>, Damaged> {
        let mut missing = Vec::new();
        for unit in units {
            missing
                .extend(plan::checks_of_unit(&self.index, unit)?.into_iter().filter(|check| self.is_missing(*check)));
        }
        missing.dedup();
        plan::runs(&self.index, &missing)
    }

    pub(super) fn is_missing(&self, check: u32) -> bool {
        self.file.state(check) == State::Missing && !self.aside.has(check) && !self.flights.has(check)
    }

    /// Takes the duty for every check that a run brings whole, except those that others bring or that came meanwhile. The waiters are for
    /// those of `needed` (ascending); the others are guessed. Where somebody goes on behind it, it ends with a slice, if that cuts the next unit.
    fn job(
        self: &Arc<Self>,
        mut run: Run,
        needed: &[u32],
        goes_on: bool,
        planned: &mut Planned,
    ) -> Result<(Option<Job>, Vec<Waiter>), Error> {
        run = plan::with_chunks(&self.index, run)?;
        let wanted = plan::checks_in(&self.index, &run)?;
        let decoded = wanted.iter().map(|wanted| wanted.range.len()).sum::<u64>().max(1);
        let share = |wanted: &Wanted| {
            let share = u128::from(run.compressed.len()) * u128::from(wanted.range.len()) / u128::from(decoded);
            u64::try_from(share).unwrap_or(u64::MAX)
        };
        let (mut duties, mut waiters) = (Vec::new(), Vec::new());
        for wanted in &wanted {
            let (duty, waiter) = match self.flights.take(wanted.check) {
                Ok((duty, waiter)) => (Some(duty), waiter),
                Err(waiter) => (None, waiter),
            };
            if needed.binary_search(&wanted.check).is_ok() {
                waiters.push(waiter);
            }
            let Some(duty) = duty else { continue };
            match (self.file.state(wanted.check), self.aside.get(wanted.check)) {
                (State::Ready, _) => duty.land(Ok(Kept::LayerFile)),
                (_, Some(kept)) => duty.land(Ok(kept)),
                _ => {
                    duties.push(duty);
                    match needed.binary_search(&wanted.check) {
                        Ok(_) => {
                            self.heat.demanded(wanted.check);
                            planned.used = planned.used.saturating_add(share(wanted));
                        }
                        Err(_) => planned.guessed.push((wanted.check, share(wanted))),
                    }
                }
            }
        }
        if duties.is_empty() {
            return Ok((None, waiters));
        }
        let lender = if goes_on { self.lend(&mut run)? } else { None };
        let head = self.head(&mut run)?;
        planned.bytes = planned.bytes.saturating_add(run.compressed.len());
        Ok((Some(Job::new(Arc::clone(self), run, wanted, duties).cut(head, lender)), waiters))
    }

    /// Lets a run go on to the end of its slice, where that cuts the next unit, and nobody has that or brings it.
    fn lend(&self, run: &mut Run) -> Result<Option<Lender>, Damaged> {
        let next = run.units.end;
        if next >= self.index.summary().units {
            return Ok(None);
        }
        // A filesystem image may have it before this run.
        if self.index.unit(next)?.compressed.start.saturating_add(1) < run.compressed.end {
            return Ok(None);
        }
        let Some(at) = plan::cut(&self.index, next)?.filter(|at| plan::is_in_slice_before(*at, run.compressed.end))
        else {
            return Ok(None);
        };
        if self.look_at(next, 0, LOOKS)?.0 != Presence::Lacking {
            return Ok(None);
        }
        run.compressed.end = at;
        Ok(Some(self.seams.lend(at)))
    }

    /// Lets a run begin with a slice, where that cuts its first unit, and another brings what is before it.
    fn head(&self, run: &mut Run) -> Result<Option<Head>, Damaged> {
        let Some(at) = plan::cut(&self.index, run.units.start)? else { return Ok(None) };
        let head = self.seams.take(at);
        if head.is_some() {
            run.compressed.start = at;
        }
        Ok(head)
    }
}
