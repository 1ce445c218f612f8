//! What the demo is at: a spinner on a terminal, plain lines elsewhere.

use std::{cell::RefCell, io::IsTerminal as _, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};

use crate::terminal;

pub(super) struct Progress {
    spinner: Option<ProgressBar>,
    last: RefCell<String>,
}

impl Progress {
    pub(super) fn new() -> Self {
        let spinner = std::io::stderr().is_terminal().then(|| {
            let spinner = ProgressBar::new_spinner();
            spinner.set_style(ProgressStyle::default_spinner());
            spinner.enable_steady_tick(Duration::from_millis(100));
            spinner
        });
        Self {
            spinner,
            last: RefCell::new(String::new()),
        }
    }

    /// Says what is being done now; the same words are said once.
    pub(super) fn step(&self, text: &str) {
        if *self.last.borrow() == text {
            return;
        }
        text.clone_into(&mut self.last.borrow_mut());
        match &self.spinner {
            Some(spinner) => spinner.set_message(format!("{text} …")),
            None => terminal::say(&format!("{text} …")),
        }
    }

    /// Leaves the terminal clean.
    pub(super) fn done(&self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.done();
    }
}
