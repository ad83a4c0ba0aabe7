//! What waits for the intake, in two queues of their own bounds: what the log tells, which can wait outside when there is no place
//! for it, and what Checks leave, which cannot. A ledger that is slow for long has the first one full all the time; the row of a
//! submission must find its place all the same, or its workflow may be held for want of an owner.

use tokio::sync::mpsc;

use super::event::Event;

/// The ways in. The queue ends when nobody holds one of them any more.
#[derive(Debug)]
pub struct Ways {
    /// For the log, which waits while it is full.
    pub log: mpsc::Sender<Event>,
    /// For Checks, which do not wait.
    pub checks: mpsc::Sender<Event>,
}

/// The way out.
#[derive(Debug)]
pub struct Queue {
    log: mpsc::Receiver<Event>,
    checks: mpsc::Receiver<Event>,
}

/// A queue with so many places for the log, and so many for Checks.
#[must_use]
pub fn queue(log: usize, checks: usize) -> (Ways, Queue) {
    let ((log, from_log), (checks, from_checks)) = (mpsc::channel(log), mpsc::channel(checks));
    (Ways { log, checks }, Queue { log: from_log, checks: from_checks })
}

impl Queue {
    /// Waits for something, and moves it and what else waits to the end of `events`, `most` of it or a few more. False when
    /// nothing will come any more.
    ///
    /// What a Check left comes before what the log tells of the same request: the end of a submission is noted in its row.
    pub async fn take(&mut self, events: &mut Vec<Event>, most: usize) -> bool {
        let (mut told, before) = (Vec::new(), events.len());
        tokio::select! {
            biased;
            true = async { self.checks.recv_many(events, most).await > 0 } => {
                // A transaction may have to wait long for its turn: it takes along what it can.
                while events.len() - before + told.len() < most
                    && let Ok(event) = self.log.try_recv()
                {
                    told.push(event);
                }
            }
            true = async { self.log.recv_many(&mut told, most).await > 0 } => {}
            else => return false,
        }
        if !told.is_empty() {
            // A Check is over before its request is, so what it left is here by now: the few that came since the look above.
            for _ in 0..self.checks.len() {
                events.extend(self.checks.try_recv());
            }
        }
        events.append(&mut told);
        true
    }

    /// Whether nobody can add anything to what the log told.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.log.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touched(task: usize) -> Event {
        Event::TaskTouched { task_id: task.to_string() }
    }

    fn ids(events: &[Event]) -> Vec<&str> {
        events.iter().map(|event| event.about().1).collect()
    }

    #[tokio::test]
    async fn what_a_check_left_has_a_place_when_the_log_has_none_and_comes_first() {
        let (ways, mut queue) = queue(2, 3);
        for n in [1, 2] {
            ways.log.try_send(touched(n)).expect("a place");
        }
        assert!(ways.log.try_send(touched(3)).is_err());
        for n in [4, 5, 6] {
            ways.checks.try_send(touched(n)).expect("a place");
        }
        assert!(ways.checks.try_send(touched(7)).is_err(), "there is a bound");
        let mut events = Vec::new();
        for (most, all) in [(2, 2), (2, 4), (2, 5)] {
            assert!(queue.take(&mut events, most).await);
            assert_eq!(events.len(), all, "as many as may be");
        }
        let place = |id: &str| ids(&events).iter().position(|other| *other == id).expect("taken");
        assert!([4, 5, 6].iter().all(|n| place(&n.to_string()) < place("1")), "{:?}", ids(&events));
        assert!(place("1") < place("2"));
    }

    #[tokio::test]
    async fn it_ends_when_both_ways_in_are_closed_and_all_is_taken() {
        for log_first in [true, false] {
            let (Ways { log, checks }, mut queue) = queue(4, 4);
            let (first, second) = if log_first { (log, checks) } else { (checks, log) };
            let mut events = Vec::new();
            first.try_send(touched(1)).expect("a place");
            drop(first);
            assert!(queue.take(&mut events, 4).await);
            second.try_send(touched(2)).expect("a place");
            drop(second);
            assert!(queue.take(&mut events, 4).await);
            assert!(!queue.take(&mut events, 4).await);
            assert_eq!(ids(&events), ["1", "2"]);
        }
    }
}
