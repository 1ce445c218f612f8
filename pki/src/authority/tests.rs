use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::{
    csr::new_csr,
    leaf::FILE,
    testing::{DOMAIN, Fleet, HOUR, born, now},
};

impl Authority {
    /// A leaf by the intermediate of `by`, changed at will before it is signed.
    pub(crate) fn forge(
        &self,
        by: Role,
        key: &PrivateKey,
        uri: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Vec<CertificateDer<'static>> {
        let intermediate = match by {
            Role::Agent => &self.agents,
            Role::Collector => &self.collectors,
            Role::Operator => &self.operators,
        };
        let now = now();
        let mut params = params("x", DOMAIN, now.before(HOUR), now.after(HOUR)).unwrap();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = purposes(by);
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        change(&mut params);
        let issuer = intermediate.issuer(&self.trust_domain).unwrap();
        let certificate = params.signed_by(&key.pair().unwrap(), &issuer).unwrap();
        vec![certificate.der().clone(), intermediate.certificate.clone()]
    }

    /// A leaf by the root itself, or by an intermediate below the intermediate of `by`.
    pub(crate) fn forge_depth(
        &self,
        dir: &Path,
        by: Role,
        key: &PrivateKey,
        uri: &str,
        deeper: bool,
    ) -> Vec<CertificateDer<'static>> {
        let now = now();
        let leaf = |issuer: &Issuer<'_, rcgen::KeyPair>| {
            let mut params = params("x", DOMAIN, now.before(HOUR), now.after(HOUR)).unwrap();
            params.extended_key_usages = purposes(by);
            params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
            params
                .signed_by(&key.pair().unwrap(), issuer)
                .unwrap()
                .der()
                .clone()
        };
        if deeper {
            let chain = self.forge(by, key, uri, |params| {
                params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
                params.key_usages = CA_USAGES.to_vec();
                params.distinguished_name = subject("below", DOMAIN);
            });
            let mut below = CertificateParams::default();
            below.distinguished_name = subject("below", DOMAIN);
            let mut deep = vec![leaf(&Issuer::new(below, key.pair().unwrap()))];
            deep.extend(chain);
            return deep;
        }
        let pem = files::read_private(&dir.join(ROOT_KEY_FILE)).unwrap();
        use rustls_pki_types::pem::PemObject as _;
        let root = rustls_pki_types::PrivatePkcs8KeyDer::from_pem_slice(&pem).unwrap();
        let root = PrivateKey::from_pkcs8(root.secret_pkcs8_der()).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = subject("root", &self.trust_domain);
        vec![leaf(&Issuer::new(params, root.pair().unwrap()))]
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn everything_in_its_folder_is_private() {
    let fleet = Fleet::new();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(fleet.dir.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(mode(&entry.path()), 0o600, "{:?}", entry.file_name());
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(
        names,
        [
            "agents.pem",
            "collectors.pem",
            "operators.pem",
            "root.key",
            "root.pem"
        ]
    );
}

#[test]
fn is_made_once_and_opens_again_without_the_roots_key() {
    let fleet = Fleet::new();
    let dir = fleet.dir.path();
    assert!(Authority::exists(dir));
    assert!(matches!(
        Authority::create(dir, DOMAIN, now()),
        Err(AuthorityError::Exists(_))
    ));
    std::fs::remove_file(dir.join(ROOT_KEY_FILE)).unwrap();
    let again = Authority::open(dir, DOMAIN, now()).unwrap();
    assert_eq!(again.root(), fleet.authority.root());
    let leaf = again.issue_collector("eu", "c1", now()).unwrap();
    let peer = fleet
        .authority
        .admission()
        .admit(leaf.chain(), &[Role::Collector], now())
        .unwrap();
    assert_eq!(
        peer.spiffe.to_string(),
        "spiffe://example.org/collector/eu/c1"
    );
}

#[test]
fn never_overwrites_a_key() {
    let fleet = Fleet::new();
    let dir = fleet.dir.path();
    let key = std::fs::read(dir.join(ROOT_KEY_FILE)).unwrap();
    std::fs::remove_file(dir.join(ROOT_FILE)).unwrap();
    assert!(!Authority::exists(dir));
    assert!(Authority::open(dir, DOMAIN, now()).is_err());
    assert!(Authority::create(dir, DOMAIN, now()).is_err());
    assert_eq!(std::fs::read(dir.join(ROOT_KEY_FILE)).unwrap(), key);
}

#[test]
fn a_wild_clock_is_an_error() {
    let fleet = Fleet::new();
    let (_, csr) = new_csr().unwrap();
    for at in [Timestamp(i64::MIN), Timestamp(-1), Timestamp(i64::MAX)] {
        assert!(
            fleet
                .authority
                .issue_agent(&csr, NodeId::random(), at)
                .is_err()
        );
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            Authority::create(&dir.path().join("ca"), DOMAIN, at),
            Err(AuthorityError::Dates { .. })
        ));
    }
}

#[test]
fn opening_finds_files_that_do_not_belong_together() {
    let (one, other) = (Fleet::new(), Fleet::new());
    std::fs::copy(
        other.dir.path().join("agents.pem"),
        one.dir.path().join("agents.pem"),
    )
    .unwrap();
    assert!(matches!(
        Authority::open(one.dir.path(), DOMAIN, now()),
        Err(AuthorityError::Refused {
            role: Role::Agent,
            source: Refusal::ForeignCa { .. }
        })
    ));
    // The intermediate of one role in the place of another's.
    std::fs::copy(
        one.dir.path().join("collectors.pem"),
        one.dir.path().join("agents.pem"),
    )
    .unwrap();
    assert!(Authority::open(one.dir.path(), DOMAIN, now()).is_err());
}

#[test]
fn leaves_live_as_long_as_they_should() {
    let fleet = Fleet::new();
    let now = now();
    let hours = |leaf: &Leaf| leaf.not_after().since(now).as_secs() / 3600;
    let agent = fleet.agent(NodeId::random(), now);
    assert_eq!(hours(&agent), 24);
    assert_eq!(now.since(agent.not_before()), limits::CLOCK_SKEW);
    assert_eq!(hours(&fleet.collector(now)), 24);
    assert_eq!(hours(&fleet.operator("alice", now)), 8);

    let Fleet { authority, .. } = fleet;
    let authority = authority.with_lives(Lives {
        agent: std::time::Duration::from_secs(3),
        ..Lives::default()
    });
    let (_, csr) = new_csr().unwrap();
    let issued = authority.issue_agent(&csr, NodeId::random(), now).unwrap();
    assert_eq!(issued.not_after.since(now).as_secs(), 3);
}

#[test]
fn no_leaf_outlives_its_intermediate() {
    let fleet = Fleet::new();
    let end = born().after(INTERMEDIATE_LIFE);
    let late = fleet.agent(NodeId::random(), end.before(HOUR));
    assert!(late.not_after() <= end);
    let (_, csr) = new_csr().unwrap();
    assert!(matches!(
        fleet
            .authority
            .issue_agent(&csr, NodeId::random(), end.after(HOUR)),
        Err(AuthorityError::Expired { .. })
    ));
}

#[test]
fn a_request_does_not_choose_its_name() {
    let fleet = Fleet::new();
    let key = PrivateKey::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(
        "spiffe://example.org/operator/root".try_into().unwrap(),
    )];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let csr = params.serialize_request(&key.pair().unwrap()).unwrap();
    let node = NodeId::random();
    let issued = fleet.authority.issue_agent(csr.der(), node, now()).unwrap();
    let leaf = Leaf::new(key, issued.chain.clone()).unwrap();
    assert_eq!(leaf.spiffe(), &SpiffeId::agent(DOMAIN, node).unwrap());
    assert_eq!(leaf.serial(), &issued.serial);
    let (_, der) = x509_parser::parse_x509_certificate(&issued.chain[0]).unwrap();
    assert!(!der.is_ca());
}

#[test]
fn serials_are_random_positive_and_as_stored() {
    let fleet = Fleet::new();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let leaf = fleet.agent(NodeId::random(), now());
        assert_eq!(leaf.serial().0.len(), 16);
        assert_eq!(leaf.serial().0[0] & 0xc0, 0x40);
        assert!(seen.insert(leaf.serial().clone()));
    }
}

#[test]
fn names_are_checked_before_they_are_certified() {
    let fleet = Fleet::new();
    let (_, csr) = new_csr().unwrap();
    for name in ["", "..", "a/b", "a b", "ä"] {
        assert!(matches!(
            fleet.authority.issue_operator(&csr, name, now()),
            Err(AuthorityError::Name(_))
        ));
    }
    assert!(fleet.authority.issue_collector("e/u", "c", now()).is_err());
    assert!(Authority::create(fleet.dir.path(), "Example.org", now()).is_err());
}

#[test]
fn a_leaf_is_one_private_file() {
    let fleet = Fleet::new();
    let dir = tempfile::tempdir().unwrap();
    let leaf = fleet.agent(NodeId::random(), now());
    leaf.save(dir.path()).unwrap();
    assert_eq!(mode(&dir.path().join(FILE)), 0o600);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let again = Leaf::load(dir.path()).unwrap();
    assert_eq!(again.chain(), leaf.chain());
    assert_eq!(again.key().pkcs8(), leaf.key().pkcs8());
    assert_eq!(again.serial(), leaf.serial());

    let other = fleet.agent(NodeId::random(), now());
    assert!(matches!(
        Leaf::new(PrivateKey::generate().unwrap(), other.chain().to_vec()),
        Err(LeafError::Mismatch)
    ));
    assert!(matches!(
        Leaf::new(PrivateKey::generate().unwrap(), Vec::new()),
        Err(LeafError::Length(0))
    ));
}

#[test]
fn purposes_are_encoded_as_the_certificates_have_them() {
    let fleet = Fleet::new();
    for (role, leaf) in [
        (Role::Agent, fleet.agent(NodeId::random(), now())),
        (Role::Collector, fleet.collector(now())),
        (Role::Operator, fleet.operator("a", now())),
    ] {
        for certificate in leaf.chain() {
            assert_eq!(
                Claims::of(certificate).unwrap().purposes,
                [purpose(role)],
                "{role}"
            );
        }
    }
}
