//! Agents that have no identity yet get one, each by a real enrolment with a signed token.

use std::time::Duration;

use super::{
    folder::{self, Endpoints, Folder},
    programs::{self, Binaries},
    progress::Progress,
};
use crate::{
    cli::TokenCreateArgs,
    connection::Collector,
    fault::{Context as _, Outcome},
    session::Session,
    token,
};

/// How long the demo's token is good for.
const TTL: Duration = Duration::from_secs(600);

pub(super) async fn enrol(
    session: &Session,
    collector: &mut Collector,
    folder: &Folder,
    binaries: &Binaries,
    endpoints: &Endpoints,
    names: &[String],
    progress: &Progress,
) -> Outcome {
    for (number, name) in (1..).zip(names) {
        folder.write_agent_config(number, name, endpoints)?;
    }
    let numbers = (1..).zip(names).map(|(number, _)| number);
    let new: Vec<u32> = numbers
        .filter(|number| !folder::is_enrolled(&folder.agent_dir(*number)))
        .collect();
    if new.is_empty() {
        return Ok(());
    }
    let args = TokenCreateArgs {
        uses: u32::try_from(new.len()).unwrap_or(u32::MAX),
        ttl: TTL,
        label: Vec::new(),
        address: vec![endpoints.agents.clone()],
    };
    let token = token::issue(session, &args, collector).await?.text;
    for (done, number) in new.iter().enumerate() {
        progress.step(&format!("enrolling agents: {done}/{}", new.len()));
        nexus_pki::files::create_folder(&folder.agent_dir(*number)).doing("demo")?;
        let mut command = binaries.agent_command(folder, *number);
        programs::output_with(command.arg("enroll").arg("-"), &token).await?;
    }
    Ok(())
}
