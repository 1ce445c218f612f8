//! What the packages in `dist/` do on a machine with a real systemd, from the first `apt install` to the purge. Needs
//! root, debootstrap, systemd-container, dpkg, iproute2 and what `packaging/repo.sh` needs, and `packaging/build.sh` before.

// `cfg(test)` tells the lints that helpers in there are test code too.
#[cfg(test)]
#[path = "interop/cable.rs"]
#[expect(dead_code, reason = "what else it can do, the other suite uses")]
mod cable;
#[cfg(test)]
#[path = "packages/collector.rs"]
mod collector;
#[cfg(test)]
#[path = "packages/debian.rs"]
mod debian;
#[cfg(test)]
#[path = "packages/dnf.rs"]
mod dnf;
#[cfg(test)]
#[path = "packages/handbook.rs"]
mod handbook;
#[cfg(test)]
#[path = "packages/helper.rs"]
mod helper;
#[cfg(test)]
#[path = "packages/life.rs"]
mod life;
#[cfg(test)]
#[path = "packages/machine.rs"]
mod machine;
#[cfg(test)]
#[path = "packages/node.rs"]
mod node;
#[cfg(test)]
#[path = "packages/package.rs"]
mod package;
#[cfg(test)]
#[path = "packages/publisher.rs"]
mod publisher;
#[cfg(test)]
#[path = "packages/reload.rs"]
mod reload;
#[cfg(test)]
#[path = "packages/rpm.rs"]
mod rpm;
#[cfg(test)]
#[path = "packages/sandbox.rs"]
mod sandbox;
#[cfg(test)]
#[path = "packages/scene.rs"]
mod scene;
#[cfg(test)]
#[path = "packages/service.rs"]
mod service;
#[cfg(test)]
#[path = "packages/unattended.rs"]
mod unattended;
