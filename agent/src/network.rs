//! Addresses and routes, by rtnetlink (rtnetlink(7)). Messages are made by pure functions.

use std::io::{Error, Result};
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use crate::fields::{Fields, Refusal};
use crate::sys;

const NEWLINK: u16 = 16;
const NEWADDR: u16 = 20;
const NEWROUTE: u16 = 24;

#[derive(Debug, PartialEq, Eq)]
pub struct Route {
    /// `None` is everything.
    pub to: Option<(IpAddr, u8)>,
    pub via: IpAddr,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub addresses: Vec<(IpAddr, u8)>,
    pub routes: Vec<Route>,
    pub mtu: Option<i64>,
}

impl Interface {
    pub fn read(mut fields: Fields) -> std::result::Result<Interface, Refusal> {
        let mut addresses = Vec::new();
        for text in fields.texts("addresses")? {
            addresses.push(prefix(&text).ok_or_else(|| wrong("addresses", &text))?);
        }
        let mut routes = Vec::new();
        for mut route in fields.objects("routes")? {
            let to = route.needed_text("to")?;
            let via = route.needed_text("via")?;
            route.done()?;
            routes.push(Route {
                to: if to == "default" {
                    None
                } else {
                    Some(prefix(&to).ok_or_else(|| wrong("routes.to", &to))?)
                },
                via: via.parse().map_err(|_| wrong("routes.via", &via))?,
            });
        }
        let interface = Interface {
            name: fields.needed_text("name")?,
            addresses,
            routes,
            mtu: fields.number("mtu", 68, 65535)?,
        };
        fields.done()?;
        Ok(interface)
    }
}

fn wrong(field: &str, text: &str) -> Refusal {
    Refusal::invalid(
        field,
        format!("got {text:?}, expected an address such as 10.0.0.2/24"),
    )
}

fn prefix(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let length: u8 = length.parse().ok()?;
    (length <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, length))
}

fn family(address: &IpAddr) -> u8 {
    if address.is_ipv4() {
        2
    } else {
        10
    }
}

fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(four) => four.octets().to_vec(),
        IpAddr::V6(six) => six.octets().to_vec(),
    }
}

fn attribute(kind: u16, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(value.len() as u16 + 4).to_le_bytes());
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// A request that is answered with an acknowledgement; `create` also makes, and replaces.
fn message(kind: u16, create: bool, body: &[u8]) -> Vec<u8> {
    let flags: u16 = 5 | if create { 0x500 } else { 0 };
    let mut out = Vec::with_capacity(16 + body.len());
    out.extend_from_slice(&(16 + body.len() as u32).to_le_bytes());
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&flags.to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(body);
    out
}

fn link_up(index: u32, mtu: Option<i64>) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend_from_slice(&index.to_le_bytes());
    body.extend_from_slice(&1u32.to_le_bytes()); // IFF_UP
    body.extend_from_slice(&1u32.to_le_bytes());
    if let Some(mtu) = mtu {
        attribute(4, &(mtu as u32).to_le_bytes(), &mut body);
    }
    message(NEWLINK, false, &body)
}

fn new_address(index: u32, address: &IpAddr, length: u8) -> Vec<u8> {
    let mut body = vec![family(address), length, 0, 0];
    body.extend_from_slice(&index.to_le_bytes());
    attribute(2, &octets(address), &mut body); // IFA_LOCAL
    attribute(1, &octets(address), &mut body); // IFA_ADDRESS
    message(NEWADDR, true, &body)
}

fn new_route(index: u32, route: &Route) -> Vec<u8> {
    let length = route.to.map_or(0, |(_, length)| length);
    // Table main, protocol boot, scope universe, type unicast.
    let mut body = vec![family(&route.via), length, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
    if let Some((to, _)) = &route.to {
        attribute(1, &octets(to), &mut body); // RTA_DST
    }
    attribute(5, &octets(&route.via), &mut body); // RTA_GATEWAY
    attribute(4, &index.to_le_bytes(), &mut body); // RTA_OIF
    message(NEWROUTE, true, &body)
}

fn ask(socket: i32, message: &[u8]) -> Result<()> {
    sys::write_some(socket, message)?;
    let mut answer = Vec::new();
    sys::read_into(socket, &mut answer, 4096)?;
    // NLMSG_ERROR; its number is 0 for an acknowledgement.
    if answer.get(4..6) == Some(&[2, 0]) {
        let number = answer.get(16..).map_or(0, crate::wire::number) as i32;
        if number != 0 {
            return Err(Error::from_raw_os_error(-number));
        }
    }
    Ok(())
}

fn index(name: &str) -> Result<u32> {
    let text = std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex"))?;
    text.trim()
        .parse()
        .map_err(|_| Error::other("an interface without a number"))
}

pub fn loopback_up() -> Result<()> {
    let socket = sys::netlink()?;
    ask(socket.as_raw_fd(), &link_up(1, None))
}

pub fn configure(interface: &Interface) -> Result<()> {
    let socket = sys::netlink()?;
    let socket = socket.as_raw_fd();
    let index = index(&interface.name)?;
    ask(socket, &link_up(index, interface.mtu))?;
    for (address, length) in &interface.addresses {
        ask(socket, &new_address(index, address, *length))?;
    }
    for route in &interface.routes {
        ask(socket, &new_route(index, route))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_its_own_length() {
        let route = Route {
            to: None,
            via: "10.0.0.1".parse().unwrap(),
        };
        for message in [
            link_up(2, Some(1400)),
            new_address(2, &"fd00::1".parse().unwrap(), 64),
            new_route(2, &route),
        ] {
            assert_eq!(crate::wire::number(&message) as usize, message.len());
            assert_eq!(message.len() % 4, 0);
        }
    }

    #[test]
    fn an_address_that_is_none_is_refused() {
        for text in ["10.0.0.2", "10.0.0.2/33", "x/8", "fd00::/129"] {
            assert_eq!(prefix(text), None, "{text}");
        }
        assert!(prefix("fd00::2/64").is_some());
        let bytes = br#"{"name":"eth0","addresses":["10.0.0.2"]}"#;
        assert_eq!(
            Interface::read(Fields::parse(bytes, "").unwrap())
                .unwrap_err()
                .field,
            "addresses"
        );
    }
}
