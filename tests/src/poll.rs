//! Waiting for a condition, with a deadline that is a failure.

use std::{future::Future, time::Duration};

use crate::fault::{Fault, Outcome};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Asks until `condition` gives a value. After `deadline` the failure says what was waited for.
pub async fn until<T, F, N>(what: &str, deadline: Duration, mut condition: F) -> Outcome<T>
where
    F: FnMut() -> N,
    N: Future<Output = Option<T>>,
{
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let wait = async {
        loop {
            look.tick().await;
            if let Some(value) = condition().await {
                return value;
            }
        }
    };
    tokio::time::timeout(deadline, wait)
        .await
        .map_err(|_| Fault::new(format!("waited {deadline:?} in vain: {what}")))
}

/// The same with a check that says what it saw; the last sight is in the failure.
pub async fn until_ok<T, F, N>(what: &str, deadline: Duration, mut check: F) -> Outcome<T>
where
    F: FnMut() -> N,
    N: Future<Output = Result<T, String>>,
{
    let last = std::cell::RefCell::new(String::new());
    until(what, deadline, || {
        let next = check();
        let last = &last;
        async move { next.await.map_err(|seen| *last.borrow_mut() = seen).ok() }
    })
    .await
    .map_err(|fault| Fault::new(format!("{fault}; last seen: {}", last.borrow())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn gives_the_value_as_soon_as_there_is_one() {
        let mut looks = 0;
        let third = until("three looks", Duration::from_secs(1), || {
            looks += 1;
            std::future::ready((looks == 3).then_some(looks))
        });
        assert_eq!(third.await.unwrap(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_says_what_was_seen_last() {
        let never = until_ok("a sunrise", Duration::from_secs(1), || {
            std::future::ready(Err::<(), _>("dark".to_owned()))
        });
        let fault = never.await.unwrap_err().to_string();
        assert!(
            fault.contains("a sunrise") && fault.ends_with("last seen: dark"),
            "{fault}"
        );
    }
}
