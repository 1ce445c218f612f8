//! How often a kind that keeps changing is read.
//!
//! Some readings in a row are free, so that what somebody does to a host shows at the next look. A kind that has used
//! them up, since it changed at every look for a minute and a half, gets another one each time it has rested: for a minute,
//! and longer where reading it is dear (less than a ten-thousandth of a processor) or what it has to say is long
//! (4 KiB a minute, counted generously). While it rests not even its sign is taken. Nothing that lasts is lost by this: the reading
//! after the rest tells what holds then. What came and went in between is not told, as it is not between two looks.

use std::time::Duration;

/// Readings in a row that are not paced.
const BURST: u32 = 9;
/// From one look to the next.
const LOOK: Duration = Duration::from_secs(10);
/// The shortest and the longest rest, in looks: a minute, five minutes.
const REST: (u32, u32) = (6, 30);
/// A rest is at least so many times the processor time the reading took.
const SHARE: u32 = 10_000;
/// And a look for each of these.
const BYTES: usize = 4_096 / 6;

/// Of one kind.
#[derive(Debug)]
pub(super) struct Pace {
    /// Readings it may do without a rest.
    free: u32,
    /// Looks it rests for each reading.
    rest: u32,
    /// Looks since it last got a free reading back.
    looks: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            free: BURST,
            rest: REST.0,
            looks: 0,
        }
    }
}

impl Pace {
    /// One more look; whether the kind may be read.
    pub(super) fn poll(&mut self) -> bool {
        if self.free < BURST {
            self.looks += 1;
            if self.looks >= self.rest {
                self.looks = 0;
                self.free += 1;
            }
        }
        self.free > 0
    }

    /// It was read, which took so much processor time and gave so many bytes to send.
    pub(super) fn read(&mut self, took: Duration, bytes: usize) {
        self.free = self.free.saturating_sub(1);
        let for_time = took.saturating_mul(SHARE).as_millis() / LOOK.as_millis();
        let (least, most) = REST;
        let for_time = u32::try_from(for_time).unwrap_or(most);
        let for_bytes = u32::try_from(bytes / BYTES).unwrap_or(most);
        self.rest = for_time.max(for_bytes).clamp(least, most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At which of so many looks after the free ones a kind that changes all the time is read.
    fn readings(looks: u32, took: Duration, bytes: usize) -> Vec<u32> {
        let mut pace = Pace::default();
        let read = |_: &u32| {
            let may = pace.poll();
            if may {
                pace.read(took, bytes);
            }
            may
        };
        let all: Vec<u32> = (0..looks).filter(read).collect();
        let (free, paced) = all.split_at(9);
        assert_eq!(free, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        paced.to_vec()
    }

    #[test]
    fn what_keeps_changing_is_read_once_a_minute() {
        let quick = Duration::from_millis(1);
        // One more comes back before the free ones are used up.
        assert_eq!(readings(40, quick, 100), [9, 12, 18, 24, 30, 36]);
        let dear = Duration::from_millis(20);
        assert_eq!(readings(70, dear, 100), [20, 40, 60]);
        assert_eq!(readings(70, quick, 8192), [12, 24, 36, 48, 60]);
        let dearest = Duration::from_secs(30);
        assert_eq!(readings(100, dearest, 100), [30, 60, 90]);
        assert_eq!(readings(100, quick, 1 << 20), [30, 60, 90]);
    }

    #[test]
    fn rest_gives_back_what_may_be_read_in_a_row() {
        let mut pace = Pace::default();
        for _ in 0..BURST {
            assert!(pace.poll());
            pace.read(Duration::ZERO, 0);
        }
        for _ in 0..100 {
            pace.poll();
        }
        assert_eq!(pace.free, BURST);
        assert!(pace.poll());
    }
}
