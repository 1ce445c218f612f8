//! The agents' and the operators' ports: what listens where, with which TLS and which service behind it.

use std::{io, net::SocketAddr, sync::Arc};

use nexus_pki::{
    admission::Admission,
    tls::{self, Alpn, KeyExchange, LiveLeaf, TlsError},
};
use nexus_proto::limits as wire_limits;
use nexus_runtime::{clock::Clock, tasks::Tasks};
use nexus_transport::{
    AgentPort, Connections, Limits, OperatorPort, Refused, ResetKeys, Serving, TlsSet, Windows,
};
use tokio::{net::TcpListener, sync::mpsc};

use crate::{config::Config, enrolment, operator, sessions};

/// What is bound, before it serves.
pub(crate) struct Bound {
    pub(crate) agents: AgentPort,
    pub(crate) operators: OperatorPort,
    pub(crate) metrics: TcpListener,
}

impl Bound {
    /// UDP and TCP.
    pub(crate) fn agents_addr(&self) -> io::Result<SocketAddr> {
        self.agents.local_addr()
    }

    /// TCP.
    pub(crate) fn operators_addr(&self) -> io::Result<SocketAddr> {
        self.operators.local_addr()
    }
}

/// One TLS configuration per way in.
pub(crate) struct Tls {
    agents: TlsSet,
    operators: Arc<rustls::ServerConfig>,
}

impl Tls {
    pub(crate) fn new(
        leaf: &LiveLeaf,
        admission: &Admission,
        groups: KeyExchange,
    ) -> Result<Self, TlsError> {
        Ok(Self {
            agents: TlsSet {
                quic: tls::agents_server(leaf, admission, groups, Alpn::H3)?,
                tcp: tls::agents_server(leaf, admission, groups, Alpn::H2)?,
                enrol: tls::enrol_server(leaf, groups)?,
            },
            operators: tls::operators_server(leaf, admission, groups)?,
        })
    }
}

/// The services behind the ports.
pub(crate) struct Services {
    pub(crate) agents: sessions::service::Server,
    pub(crate) enrolment: enrolment::service::Server,
    pub(crate) operators: operator::service::Server,
}

/// What both ports are given.
pub(crate) struct Ground<'a> {
    pub(crate) admission: &'a Admission,
    pub(crate) keys: ResetKeys,
    pub(crate) clock: &'a Clock,
    pub(crate) tasks: &'a Tasks,
}

/// What the ports have seen, to be published.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) agents: Connections,
    pub(crate) operators: Connections,
}

impl Seen {
    /// With the limits of this configuration; `refused` hears of every certificate that is refused.
    pub(crate) fn new(config: &Config, refused: &mpsc::Sender<Refused>) -> Self {
        let limits = |connections| Limits {
            connections,
            handshakes: config.handshakes,
            drain: config.shutdown_timeout,
            ..Limits::default()
        };
        Self {
            agents: Connections::telling(limits(config.connections), Some(refused.clone())),
            operators: Connections::telling(
                Limits {
                    connections_per_identity: wire_limits::CONNECTIONS_PER_OPERATOR,
                    calls: wire_limits::OPERATOR_STREAMS,
                    windows: Windows::operator(),
                    ..limits(wire_limits::OPERATOR_CONNECTIONS)
                },
                Some(refused.clone()),
            ),
        }
    }
}

/// Serves both ports until shutdown; the program cannot do without either.
pub(crate) fn serve(
    ground: Ground<'_>,
    ports: (AgentPort, OperatorPort),
    tls: Tls,
    services: Services,
    seen: &Seen,
) {
    let serving = |connections: &Connections| Serving {
        admission: ground.admission.clone(),
        clock: ground.clock.clone(),
        connections: connections.clone(),
        shutdown: ground.tasks.token(),
    };
    let (agents, operators) = ports;
    let (of_agents, of_operators) = (serving(&seen.agents), serving(&seen.operators));
    let keys = ground.keys;
    ground.tasks.spawn_essential("agents' port", async move {
        agents
            .serve(
                tls.agents,
                &keys,
                services.agents,
                services.enrolment,
                of_agents,
            )
            .await
    });
    ground.tasks.spawn_essential("operators' port", async move {
        operators
            .serve(tls.operators, services.operators, of_operators)
            .await
    });
}
