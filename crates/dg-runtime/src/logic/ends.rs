//! How a job ended, from how it ended on each of its ranks.

/// How a job ended on one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End<T, E> {
    /// As it should.
    Done(T),
    /// With an error.
    Failed(Fault, E),
    /// It never began there: the rank was lost before.
    Lost,
}

/// Kinds of errors, the one that explains most first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The rank panicked.
    Panic,
    /// An error of the rank's own; a deadline that it did not wait beyond too.
    Own,
    /// Somebody cancelled the job.
    Cancelled,
    /// Only that another rank has ended.
    Echo,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<T, E> {
    /// On all ranks as it should: what each of them has to give, in the order of the ranks.
    Done(Vec<T>),
    /// With the error that explains the others.
    Failed {
        /// Whose it is.
        rank: usize,
        /// Of which kind.
        fault: Fault,
        /// The error.
        error: E,
    },
    /// Through no fault of its own: that rank was lost before.
    Orphaned {
        /// Which.
        rank: usize,
    },
}

/// Collects the ends of one job.
#[derive(Clone, Debug)]
pub struct Ends<T, E> {
    ranks: usize,
    /// In the order in which they came.
    ends: Vec<(usize, End<T, E>)>,
}

impl<T, E> Ends<T, E> {
    /// Of a job on so many ranks.
    pub fn new(ranks: usize) -> Self {
        Self { ranks, ends: Vec::with_capacity(ranks) }
    }

    /// The job has ended on `rank`; the first end that a rank tells counts. With the last one comes the outcome.
    ///
    /// Of errors of one kind the first to come is the job's, as the later ones may follow from it.
    pub fn report(&mut self, rank: usize, end: End<T, E>) -> Option<Outcome<T, E>> {
        if rank >= self.ranks || self.ends.iter().any(|(other, _)| *other == rank) {
            return None;
        }
        self.ends.push((rank, end));
        (self.ends.len() == self.ranks).then(|| self.outcome())
    }

    fn outcome(&mut self) -> Outcome<T, E> {
        let lost = self.ends.iter().find(|(_, end)| matches!(end, End::Lost)).map(|(rank, _)| *rank);
        let mut done = Vec::new();
        let mut root: Option<(usize, Fault, E)> = None;
        for (rank, end) in std::mem::take(&mut self.ends) {
            match end {
                End::Done(result) => done.push((rank, result)),
                End::Failed(fault, error) if root.as_ref().is_none_or(|(_, than, _)| fault < *than) => {
                    root = Some((rank, fault, error));
                }
                End::Failed(..) | End::Lost => {}
            }
        }
        match (root, lost) {
            (Some((_, Fault::Echo, _)) | None, Some(rank)) => Outcome::Orphaned { rank },
            (Some((rank, fault, error)), _) => Outcome::Failed { rank, fault, error },
            (None, None) => {
                done.sort_by_key(|(rank, _)| *rank);
                Outcome::Done(done.into_iter().map(|(_, result)| result).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use End::{Done, Lost};

    type Tested = End<u32, &'static str>;

    fn check(ends: &[(usize, Tested)], expected: Outcome<u32, &'static str>) {
        let mut all = Ends::new(ends.len());
        let (last, first) = ends.split_last().unwrap();
        for (rank, end) in first {
            assert_eq!(all.report(*rank, end.clone()), None);
            assert_eq!(all.report(*rank, Lost), None, "the first end counts");
        }
        assert_eq!(all.report(ends.len(), Lost), None, "no such rank");
        assert_eq!(all.report(last.0, last.1.clone()), Some(expected));
    }

    fn failed(fault: Fault, error: &'static str) -> Tested {
        End::Failed(fault, error)
    }

    #[test]
    fn results_stand_in_the_order_of_ranks() {
        check(&[(2, Done(7)), (0, Done(5)), (1, Done(6))], Outcome::Done(vec![5, 6, 7]));
    }

    #[test]
    fn the_error_that_explains_most_is_the_jobs() {
        use Fault::{Cancelled, Echo, Own, Panic};
        let all = [(Echo, "echo"), (Cancelled, "cancelled"), (Own, "own"), (Own, "later"), (Panic, "panic")];
        let expected = ["echo", "cancelled", "own", "own", "panic"];
        for n in 1..=all.len() {
            let ends = all[..n].iter().enumerate().map(|(i, (fault, error))| (i + 1, failed(*fault, error)));
            let ends: Vec<_> = ends.chain([(0, Done(1))]).collect();
            let rank = if n == 4 { 3 } else { n };
            check(&ends, Outcome::Failed { rank, fault: all[rank - 1].0, error: expected[n - 1] });
        }
    }

    #[test]
    fn a_job_is_an_orphan_only_if_nothing_else_went_wrong() {
        let echo = || failed(Fault::Echo, "echo");
        check(&[(1, Lost), (0, echo())], Outcome::Orphaned { rank: 1 });
        check(&[(0, Done(1)), (1, Lost)], Outcome::Orphaned { rank: 1 });
        let cancelled = failed(Fault::Cancelled, "cancelled");
        let expected = Outcome::Failed { rank: 0, fault: Fault::Cancelled, error: "cancelled" };
        check(&[(1, Lost), (0, cancelled)], expected);
    }
}
