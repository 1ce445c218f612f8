//! The one place that asks the machine what time it is.
//!
//! Programs make a system clock and hand it down; tests hand down one that stands still until moved.
//! Wall time says when something happened; [`Clock::instant`] measures how long something took and is
//! not moved by a step of the wall clock.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use nexus_proto::time::Timestamp;

/// Tells the time. Clones of a fixed clock move together.
#[derive(Clone)]
pub struct Clock(Source);

#[derive(Clone)]
enum Source {
    System,
    Fixed(Arc<Mutex<Fixed>>),
}

struct Fixed {
    wall: Timestamp,
    instant: Instant,
}

impl Clock {
    /// The machine's clocks.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that shows `wall` until it is moved.
    #[must_use]
    pub fn fixed(wall: Timestamp) -> Self {
        Self(Source::Fixed(Arc::new(Mutex::new(Fixed {
            wall,
            instant: machine_instant(),
        }))))
    }

    /// Wall-clock time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => machine_time().into(),
            Source::Fixed(fixed) => fixed.lock().unwrap_or_else(PoisonError::into_inner).wall,
        }
    }

    /// Monotonic time.
    #[must_use]
    pub fn instant(&self) -> Instant {
        match &self.0 {
            Source::System => machine_instant(),
            Source::Fixed(fixed) => fixed.lock().unwrap_or_else(PoisonError::into_inner).instant,
        }
    }

    /// Lets `span` pass on a fixed clock, wall and monotonic alike. The system's clock takes no orders.
    pub fn advance(&self, span: Duration) {
        if let Source::Fixed(fixed) = &self.0 {
            let mut fixed = fixed.lock().unwrap_or_else(PoisonError::into_inner);
            fixed.wall = fixed.wall.after(span);
            fixed.instant += span;
        }
    }

    /// Steps a fixed clock's wall time, as an administrator or NTP would; monotonic time stays.
    pub fn set(&self, wall: Timestamp) {
        if let Source::Fixed(fixed) = &self.0 {
            fixed.lock().unwrap_or_else(PoisonError::into_inner).wall = wall;
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::System => f.write_str("Clock::system"),
            Source::Fixed(_) => write!(f, "Clock::fixed({})", self.now()),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the clock")]
fn machine_time() -> SystemTime {
    SystemTime::now()
}

#[expect(clippy::disallowed_methods, reason = "this is the clock")]
fn machine_instant() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_clock_moves_only_when_told() {
        let clock = Clock::fixed(Timestamp(1_000));
        let other = clock.clone();
        let start = clock.instant();
        assert_eq!(clock.now(), Timestamp(1_000));
        other.advance(Duration::from_secs(2));
        assert_eq!(clock.now(), Timestamp(3_000));
        assert_eq!(clock.instant() - start, Duration::from_secs(2));
        other.set(Timestamp(500));
        assert_eq!(clock.now(), Timestamp(500));
        assert_eq!(clock.instant() - start, Duration::from_secs(2));
    }

    #[test]
    fn the_system_clock_is_past_2020() {
        let clock = Clock::system();
        clock.advance(Duration::from_secs(1 << 40));
        let now = clock.now();
        assert!(now > Timestamp(1_577_836_800_000), "{now}");
        assert!(now < Timestamp(32_503_680_000_000), "{now}");
    }
}
