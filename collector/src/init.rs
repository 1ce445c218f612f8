//! `init`: a new collector's state folder. `login-code`: a further way in, also beside a running collector.

use std::fs;

use nexus_pki::{
    authority::Authority, certificate::Root, files, operator_code::OperatorCode, random, spiffe,
};
use nexus_proto::time::Timestamp;
use nexus_runtime::{
    command_line::say,
    fault::{Doing as _, Fault, Outcome},
    service,
};
use nexus_store::{Layout, Store};

use crate::{
    codes,
    config::{self, Config},
    folder::{Folder, Instance},
};

/// The first operator.
const FIRST_OPERATOR: &str = "admin";
/// The root's key; it may be kept elsewhere.
const ROOT_KEY: &str = "root.key";
/// Files with the keys of QUIC's stateless resets and connection ids. They outlive restarts, so that a
/// restarted collector can tell agents at once that their connections are gone.
pub(crate) const RESET_KEY: &str = "stateless-reset.key";
/// See [`RESET_KEY`].
pub(crate) const CONNECTION_ID_KEY: &str = "connection-id.key";

/// Whether the state folder is a collector's, whole and not half-made.
pub(crate) fn is_done(config: &Config) -> bool {
    let folder = Folder::new(&config.state_dir);
    folder.instance().ok().flatten().is_some()
}

/// Makes everything a collector needs and returns the first operator's code.
pub(crate) fn init(config: &Config, now: Timestamp) -> Outcome<String> {
    create(config, now)?;
    say("next: `nexus-collector serve`, then `nexusctl login CODE` with the code below");
    login_code(config, FIRST_OPERATOR, now)
}

/// The same without a code, for where what is printed is kept.
pub(crate) fn create(config: &Config, now: Timestamp) -> Outcome {
    let folder = Folder::new(&config.state_dir);
    let what = format!("initialise {}", config.state_dir.display());
    if folder.is_used() {
        let fault = Fault::new(what, "a collector's state is there already");
        return Err(if folder.instance().ok().flatten().is_some() {
            fault.hint("`nexus-collector login-code` prints a new operator code; choose another --state-dir for another collector")
        } else {
            fault.hint("an earlier init was interrupted: remove the folder and run init again")
        });
    }
    check_names(config)?;
    files::create_folder(&config.state_dir).map_err(|error| {
        let fault = Fault::because(&what, &error);
        match error.is_denied() {
            true => {
                fault.hint("run it as root, or name a folder that you may make with --state-dir")
            }
            false => fault,
        }
    })?;
    restrict(&config.state_dir).doing(&what)?;

    let domain = &config.trust_domain.value;
    let authority = Authority::create(&folder.authority(), domain, now).doing(&what)?;
    authority
        .issue_collector(&config.region.value, &config.id.value, now)
        .doing(&what)?
        .save(&folder.leaf())
        .doing(&what)?;
    files::create_folder(&folder.keys()).doing(&what)?;
    for name in [RESET_KEY, CONNECTION_ID_KEY] {
        let key: [u8; 64] = random().doing(&what)?;
        files::write_private(&folder.keys(), name, &key).doing(&what)?;
    }

    Store::create(folder.path(), Layout::new(config.shards)).doing(&what)?;
    folder
        .set_instance(domain, &config.region.value, &config.id.value, now)
        .doing(&what)?;
    say(&format!(
        "initialised {} for the fleet {domain}",
        config.state_dir.display()
    ));
    Ok(())
}

/// Opens the certificate authority; a root key that others may read is refused like every other key, though only
/// new intermediates need it.
pub(crate) fn open_authority(
    folder: &Folder,
    instance: &Instance,
    now: Timestamp,
) -> Outcome<Authority> {
    let dir = folder.authority();
    let what = format!("open the certificate authority in {}", dir.display());
    match files::check_private(&dir.join(ROOT_KEY)) {
        Err(error) if !error.is_missing() => return Err(Fault::because(&what, &error)),
        _ => {}
    }
    let credentials = service::credentials();
    let domain = &instance.trust_domain;
    Authority::open_with(&dir, credentials.as_deref(), domain, now).map_err(|error| {
        Fault::because(&what, &error).hint(
            "put its files back, from a backup if need be: agents and operators trust no other authority",
        )
    })
}

/// A new one-time code for the operator `name`.
pub(crate) fn login_code(config: &Config, name: &str, now: Timestamp) -> Outcome<String> {
    let what = format!("make a code for {name}");
    let folder = Folder::new(&config.state_dir);
    let instance = instance_of(&folder, config)?;
    spiffe::check_segment(name)
        .doing(&what)
        .map_err(Fault::usage)?;
    // The online keys may be the service manager's to hand out, and nobody needs them here.
    let root = Authority::read_root(&folder.authority()).doing(&what)?;
    let code = new_code(config, &folder, &instance, &root, name, now)?;
    say(&format!(
        "the code lets {name} in once, until {}",
        code.expires
    ));
    Ok(code.encode())
}

/// Whose folder it is, if it is one and agrees with what the configuration says expressly.
pub(crate) fn instance_of(folder: &Folder, config: &Config) -> Outcome<Instance> {
    let what = format!("open {}", folder.path().display());
    let instance = folder
        .instance()
        .doing(&what)?
        .ok_or_else(|| match folder.is_used() {
            true => Fault::new(&what, "its initialisation did not finish")
                .hint("remove the folder and run `nexus-collector init` again"),
            false => Fault::new(&what, "it holds no collector's state")
                .hint("`nexus-collector init` makes it"),
        })?;
    for (key, fixed, found) in [
        ("trust_domain", &config.trust_domain, &instance.trust_domain),
        ("region", &config.region, &instance.region),
        ("id", &config.id, &instance.id),
    ] {
        if fixed.given && fixed.value != *found {
            return Err(Fault::new(
                &what,
                format!(
                    "it was initialised with {key} `{found}`, the configuration says `{}`",
                    fixed.value
                ),
            )
            .hint(format!(
                "{key} is fixed by init: leave it out, or choose another state_dir"
            )));
        }
    }
    Ok(instance)
}

fn new_code(
    config: &Config,
    folder: &Folder,
    instance: &Instance,
    root: &Root,
    name: &str,
    now: Timestamp,
) -> Outcome<OperatorCode> {
    let what = format!("make a code for {name}");
    let code = OperatorCode::generate(
        name,
        &instance.trust_domain,
        root.sha256(),
        operator_addresses(config, folder),
        now.after(codes::LIFE),
    )
    .doing(&what)?;
    codes::keep(&folder.codes(), &code, now).doing(&what)?;
    Ok(code)
}

/// Where operators reach this collector: as configured, else where it answers now or answered last, else
/// where it will.
fn operator_addresses(config: &Config, folder: &Folder) -> Vec<String> {
    let listen = config.operators_listen;
    if config.advertise_operators.is_empty() && listen.port() == 0 {
        if let Ok(Some(endpoints)) = folder.endpoints()
            && let Some(address) = endpoints.operators.strip_prefix("https://")
        {
            return vec![address.to_owned()];
        }
        say(
            "warning: operators.listen has port 0, so the code names the usual port: give `nexusctl login` the --address",
        );
        let usual = std::net::SocketAddr::new(listen.ip(), 7461);
        return config::advertised(&[], usual);
    }
    config::advertised(&config.advertise_operators, listen)
}

fn check_names(config: &Config) -> Outcome {
    let usage = |key: &'static str| {
        move |error| Fault::because(format!("configuration: {key}"), &error).usage()
    };
    spiffe::check_trust_domain(&config.trust_domain.value).map_err(usage("trust_domain"))?;
    spiffe::check_segment(&config.region.value).map_err(usage("region"))?;
    spiffe::check_segment(&config.id.value).map_err(usage("id"))
}

/// A folder made by a package or an administrator may be open to others.
fn restrict(dir: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use nexus_runtime::clock::Clock;

    use super::*;
    use crate::testing::configure;

    #[test]
    fn an_authority_that_cannot_be_used_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let config = configure(dir.path(), &[]);
        let now = Clock::system().now();
        init(&config, now).unwrap();
        let folder = Folder::new(&config.state_dir);
        let instance = instance_of(&folder, &config).unwrap();
        let open = || open_authority(&folder, &instance, now).map_err(|fault| fault.to_string());
        let files = folder.authority();

        let key = files.join(ROOT_KEY);
        let allow = |mode| fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        allow(0o644);
        let error = open().unwrap_err();
        assert!(error.contains("root.key has mode 0644"), "{error}");
        allow(0o600);
        assert!(open().is_ok());
        fs::rename(&key, dir.path().join("safe")).unwrap();
        assert!(open().is_ok(), "the root's key may be kept elsewhere");

        fs::write(files.join("root.pem"), "rubbish").unwrap();
        let error = open().unwrap_err();
        assert!(error.contains(&*files.to_string_lossy()), "{error}");
    }
}
