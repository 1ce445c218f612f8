//! What the service manager is told (sd_notify(3)). Without one there is nobody to tell.

use std::{path::PathBuf, time::Duration};

use sd_notify::NotifyState;

/// The longest text of `systemctl status`.
const STATUS_CHARS: usize = 400;

/// The program does what it is for.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// It reads its configuration anew, until it is [`ready`] again.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "the service manager was not told"),
    }
}

/// It ends.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// What `systemctl status` shows; as [`one_line`] makes it.
pub fn status(text: &str) {
    notify(&[NotifyState::Status(&one_line(text))]);
}

/// It still gets on with its work.
pub fn alive() {
    notify(&[NotifyState::Watchdog]);
}

/// How long the service manager waits for [`alive`]; `None`: it does not.
#[must_use]
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// The folder with the keys and tokens that the service manager hands to this program (systemd.exec(5), Credentials).
#[must_use]
pub fn credentials() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

/// What the service manager reads is a line a setting, and a reason may come from anybody.
#[must_use]
pub fn one_line(text: &str) -> String {
    let visible = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    visible.take(STATUS_CHARS).collect()
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_writes_a_line_of_their_own() {
        let text = one_line("not connected: x\nWATCHDOG=trigger\r\nMAINPID=1");
        assert_eq!(text, "not connected: x WATCHDOG=trigger  MAINPID=1");
        assert_eq!(one_line(&"x".repeat(5000)).len(), STATUS_CHARS);
    }
}
