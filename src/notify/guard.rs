//! Which addresses webhooks may go to: whoever can name a receiver must not reach what only this machine can.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Where a receiver is that must not be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Forbidden {
    host: String,
}

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} leads to a private address, and those are not allowed", self.host)
    }
}

impl std::error::Error for Forbidden {}

/// Resolves names to the addresses that may be told. What it gives is what is connected to, so that no second answer of a
/// name's server can lead elsewhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guard {
    pub(super) allow_private: bool,
}

impl Guard {
    /// Refuses a host that is a forbidden address by itself, which is never resolved.
    pub(super) fn check_host(self, host: &str) -> Result<(), Forbidden> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        match bare.parse::<IpAddr>() {
            Ok(address) if !self.allows(address) => Err(Forbidden { host: host.to_owned() }),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn allows(self, address: IpAddr) -> bool {
        self.allow_private || is_public(address)
    }

    async fn addresses(self, name: &str) -> Result<Vec<SocketAddr>, Box<dyn std::error::Error + Send + Sync>> {
        // RFC 6761 §6.3: these names are this machine, whatever anybody's server says.
        let is_here = name == "localhost" || name.ends_with(".localhost");
        let found: Vec<SocketAddr> = match is_here {
            true => vec![(Ipv4Addr::LOCALHOST, 0).into(), (Ipv6Addr::LOCALHOST, 0).into()],
            false => tokio::net::lookup_host((name, 0)).await?.collect(),
        };
        let allowed: Vec<SocketAddr> = found.into_iter().filter(|address| self.allows(address.ip())).collect();
        if allowed.is_empty() {
            return Err(Box::new(Forbidden { host: name.to_owned() }));
        }
        Ok(allowed)
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = *self;
        Box::pin(async move {
            let allowed = guard.addresses(name.as_str()).await?;
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// Whether an address is one of the public Internet. Ranges: RFC 6890 and the registries that it founds.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => match inner(address) {
            Some(inner) => is_public_v4(inner),
            None => is_public_v6(address),
        },
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let reserved = a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (b == 18 || b == 19));
    !(reserved
        || address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation())
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    // Global unicast (RFC 4291 §2.4) without its parts for protocols, documentation (RFC 3849, RFC 9637) and tunnels.
    (a & 0xe000) == 0x2000 && !(a == 0x2001 && b < 0x0200) && !(a == 0x2001 && b == 0x0db8) && a != 0x3fff
}

/// The IPv4 address that an IPv6 address leads to: mapped, translated (RFC 6052), 6to4 (RFC 3056).
fn inner(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let segments = address.segments();
    let of = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match segments {
        [0, 0, 0, 0, 0, 0xffff, high, low] => Some(of(high, low)),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(of(high, low)),
        [0x2002, high, low, ..] => Some(of(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_told() {
        for public in ["8.8.8.8", "100.63.0.1", "172.32.0.1", "192.169.0.1", "2606:4700::1111", "64:ff9b::808:808"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for private in [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "ff02::1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
    }

    #[tokio::test]
    async fn names_of_this_machine_are_refused_unless_private_ones_are_allowed() {
        for name in ["localhost", "hooks.localhost"] {
            assert!(Guard { allow_private: false }.addresses(name).await.is_err(), "{name}");
            assert!(!Guard { allow_private: true }.addresses(name).await.unwrap().is_empty(), "{name}");
        }
    }

    #[test]
    fn addresses_in_place_of_names_are_checked() {
        for host in ["127.0.0.1", "[::1]", "169.254.169.254"] {
            assert!(Guard { allow_private: false }.check_host(host).is_err(), "{host}");
            assert!(Guard { allow_private: true }.check_host(host).is_ok(), "{host}");
        }
        assert!(Guard { allow_private: false }.check_host("hooks.example").is_ok());
    }
}
