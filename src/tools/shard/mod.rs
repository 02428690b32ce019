//! Which node a device group goes to by itself, and load balancers that send it there.
//!
//! Every node of a cluster serves every device: one that belongs to a group of another node is passed on to it. That costs a
//! second hop, which a load balancer saves that sends all devices of a group to one node. It can, since a device's URL names its
//! group. A wrong guess of the balancer's is never a mistake, only a detour.
//!
//! # The plan
//!
//! A group's *prefix* is the first byte of its id: of a public key, so all 256 are equally likely. For each prefix the nodes are
//! ranked by rendezvous hashing: each draws a number, SHA-256 of the prefix and its name, and the highest comes first. So a node that is
//! added takes what it wins and nothing else moves; what a node had that is gone goes to those that came second, spread over all
//! of them; and where it runs does not matter, only what it is called.
//!
//! The ranking is written out, as lists of prefixes. *Rejected: the proxies' own consistent hashing*, which differs from proxy to
//! proxy and between versions of one, so that a plan could neither be read nor be the same everywhere. It remains for paths that
//! name no group in the usual form.
//!
//! # When a node is away
//!
//! Its groups go to the one that came second, and back when it is there again. HAProxy asks the nodes how they are; nginx finds out
//! by failing. The devices that a node had are not waited for: HAProxy ends their connections as soon as the node does not answer,
//! also one that only stopped (a paused machine, a cut cable), whose sockets would stay open otherwise. A node that drains is not
//! away: it gets nobody new, and says farewell to those it has by itself.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::IpAddr;
use std::process::ExitCode;
use std::str::FromStr;

use clap::{Subcommand, ValueEnum};
use http::uri::Authority;
use miette::{IntoDiagnostic as _, Result, miette};
use sha2::{Digest as _, Sha256};

/// How many nodes a plan can have: each is to get some of the 256 prefixes.
pub const NODES_MAX: usize = 32;
/// Longest name of a node, in characters.
pub const NAME_MAX: usize = 64;
/// How many nodes are named for each prefix. When all of them are away, the proxy chooses for itself.
const RANKS: [&str; 3] = ["first", "second", "third"];
/// Prefixes in a line of HAProxy's, which takes 64 words.
const LINE: usize = 32;

const _: () = assert!(NODES_MAX * 8 <= 256, "every node gets prefixes");

/// `shard`
#[derive(Debug, Subcommand)]
pub enum Tool {
    /// Say which node gets which device groups, and write a load balancer's configuration that sends them there
    Plan(Args),
}

/// `shard plan`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A node: its name, and where it takes devices; once for each
    #[arg(long = "node", value_name = "NAME=HOST:PORT", required = true)]
    nodes: Vec<Node>,
    /// Write this proxy's configuration [default: only the plan]
    #[arg(long = "for", value_name = "PROXY")]
    proxy: Option<Proxy>,
    /// Where the proxy takes devices
    #[arg(long, default_value_t = 443)]
    port: u16,
    /// The proxy's certificate: for HAProxy, chain and key in one [default: haproxy.pem or fullchain.pem in /etc/heliostat]
    #[arg(long, value_name = "FILE", value_parser = plain_path)]
    certificate: Option<String>,
    /// Its key, for nginx
    #[arg(long, value_name = "FILE", value_parser = plain_path, default_value = "/etc/heliostat/key.pem")]
    key: String,
    /// The nodes' admin doors, all on this port of the same hosts: HAProxy asks there who is ready. Without it, it looks whether
    /// they accept connections
    #[arg(long, value_name = "PORT")]
    admin_port: Option<u16>,
}

/// For which a configuration can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Proxy {
    /// HAProxy, 2.6 or newer
    Haproxy,
    /// nginx, 1.22 or newer
    Nginx,
}

/// A node as a load balancer sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    name: String,
    host: String,
    port: u16,
}

/// Why something is no node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadNode {
    /// There is no `=` in it.
    #[error("expected NAME=HOST:PORT")]
    NoName,
    /// As in `cluster.name`; and it goes into files of others' grammars.
    #[error("a node's name is 1 to {NAME_MAX} letters, digits, `.`, `_` and `-`, and begins with a letter or a digit")]
    Name,
    /// Neither an address nor a host's name with a port.
    #[error("expected HOST:PORT behind the name, as in 10.0.0.1:8080 or [2001:db8::1]:8080")]
    Address,
}

impl FromStr for Node {
    type Err = BadNode;

    fn from_str(text: &str) -> Result<Self, BadNode> {
        let (name, address) = text.split_once('=').ok_or(BadNode::NoName)?;
        let fits = name.len() <= NAME_MAX && name.starts_with(|first: char| first.is_ascii_alphanumeric());
        if !fits || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
            return Err(BadNode::Name);
        }
        let authority = Authority::from_str(address).map_err(|_| BadNode::Address)?;
        let (host, port) = (authority.host(), authority.port_u16().filter(|&port| port != 0));
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let is_name = || {
            host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
                && host.starts_with(|first: char| first.is_ascii_alphanumeric())
        };
        let is_host = !address.contains('@') && (bare.parse::<IpAddr>().is_ok() || is_name());
        let port = port.filter(|_| is_host).ok_or(BadNode::Address)?;
        Ok(Self { name: name.to_owned(), host: host.to_owned(), port })
    }
}

impl Node {
    /// What its operator calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    fn has_name_for_host(&self) -> bool {
        self.host.trim_matches(['[', ']']).parse::<IpAddr>().is_err()
    }

    /// The number it draws for a prefix.
    fn draw(&self, prefix: u8) -> [u8; 32] {
        Sha256::digest([&[prefix], self.name.as_bytes()].concat()).into()
    }
}

/// Why nodes make no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPlan {
    /// None at all, or too many for so few prefixes.
    #[error("a plan has 1 to {NODES_MAX} nodes")]
    Number,
    /// Two of one name, or two at one place.
    #[error("{0} is there twice")]
    Twice(String),
}

/// Which nodes get which groups.
#[derive(Debug, Clone)]
pub struct Plan {
    nodes: Vec<Node>,
    /// For each of the 256 prefixes all of them, in the order in which they are to get its groups.
    ranked: Vec<Vec<Node>>,
}

/// The load balancer's own side.
#[derive(Debug, Clone)]
pub struct Front {
    /// Where it takes devices.
    pub port: u16,
    /// Its certificate's file; for HAProxy with the key in it.
    pub certificate: String,
    /// The key's file, for nginx.
    pub key: String,
    /// Where the nodes say how they are, if that can be reached.
    pub admin_port: Option<u16>,
}

impl Plan {
    /// A plan for these nodes. Their order does not matter.
    ///
    /// # Errors
    /// [`BadPlan`] says what is wrong with them.
    pub fn new(mut nodes: Vec<Node>) -> Result<Self, BadPlan> {
        if !(1..=NODES_MAX).contains(&nodes.len()) {
            return Err(BadPlan::Number);
        }
        let mut seen = BTreeSet::new();
        for node in &nodes {
            for unique in [node.name.clone(), node.address()] {
                if !seen.insert(unique.clone()) {
                    return Err(BadPlan::Twice(unique));
                }
            }
        }
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let ranked = (0..=u8::MAX).map(|prefix| {
            let mut ranked = nodes.clone();
            ranked.sort_by_cached_key(|node| Reverse(node.draw(prefix)));
            ranked
        });
        Ok(Self { ranked: ranked.collect(), nodes })
    }

    /// All nodes in the order in which they are to get the groups of a prefix.
    #[must_use]
    pub fn ranked(&self, prefix: u8) -> &[Node] {
        self.ranked.get(usize::from(prefix)).map_or(&[], Vec::as_slice)
    }

    /// The prefixes for which a node comes at a rank; 0 is the first.
    fn prefixes(&self, node: &Node, rank: usize) -> Vec<String> {
        let has = |prefix: &u8| self.ranked(*prefix).get(rank) == Some(node);
        (0..=u8::MAX).filter(has).map(hex).collect()
    }

    fn ranks(&self) -> impl Iterator<Item = (usize, &'static str)> {
        RANKS.into_iter().take(self.nodes.len()).enumerate()
    }

    /// Who gets how many of the 256 prefixes, as lines for people.
    #[must_use]
    pub fn table(&self) -> Vec<String> {
        let wide = |of: fn(&Node) -> usize, least: usize| self.nodes.iter().map(of).max().unwrap_or(0).max(least);
        let (name, address) = (wide(|node| node.name.len(), 4), wide(|node| node.address().len(), 7));
        let row = |first: &str, second: &str, cells: Vec<String>| {
            let cells: String = cells.iter().map(|cell| format!("{cell:>8}")).collect();
            format!("{first:name$}  {second:address$}{cells}")
        };
        let head = self.ranks().map(|(_, rank)| rank.to_owned()).collect();
        let counts = |node| self.ranks().map(|(rank, _)| self.prefixes(node, rank).len().to_string()).collect();
        let rows = self.nodes.iter().map(|node| row(&node.name, &node.address(), counts(node)));
        std::iter::once(row("node", "address", head)).chain(rows).collect()
    }

    /// The configuration of a proxy, which ends with a line's end.
    #[must_use]
    pub fn configuration(&self, proxy: Proxy, front: &Front) -> String {
        match proxy {
            Proxy::Haproxy => self.haproxy(front),
            Proxy::Nginx => self.nginx(front),
        }
    }

    /// What stands at the top: where it is from, and the plan.
    fn preface(&self, proxy: Proxy, front: &Front) -> String {
        let (word, own) = match (proxy, front.admin_port) {
            (Proxy::Haproxy, Some(port)) => ("haproxy", format!(" --admin-port {port}")),
            (Proxy::Haproxy, None) => ("haproxy", String::new()),
            (Proxy::Nginx, _) => ("nginx", format!(" --key {}", front.key)),
        };
        let Front { port, certificate, .. } = front;
        let command = format!("heliostat shard plan --for {word} --port {port} --certificate {certificate}{own}");
        let nodes =
            lines(self.nodes.iter().map(|node| format!(" \\\n#     --node {}={}", node.name, node.address())), "");
        let table = lines(self.table(), "\n#   ");
        format!(
            "# Made by\n#   {command}{nodes}\n#\n\
             # Of the 256 first bytes a device group's id can have, a node is asked for so many as the first, second and third:\n\
             #{table}\n#\n\
             # Names decide, not addresses. With another node only what it takes moves, without one only what it had."
        )
    }

    fn haproxy(&self, front: &Front) -> String {
        // At the start there may be no such name yet, and it may mean another address later.
        let (resolvers, resolved) = if self.nodes.iter().any(Node::has_name_for_host) {
            (
                "resolvers system\n    parse-resolv-conf\n    hold valid 10s\n\n",
                " resolvers system init-addr last,libc,none",
            )
        } else {
            ("", "")
        };
        let (mut lists, mut rules) = (Vec::new(), Vec::new());
        for (rank, word) in self.ranks() {
            for node in &self.nodes {
                let (name, prefixes) = (&node.name, self.prefixes(node, rank));
                let list = |line: &[String]| format!("    acl {word}_{name} var(txn.prefix) -m str {}", line.join(" "));
                lists.extend(prefixes.chunks(LINE).map(list));
                // A list without an entry would not be there.
                if !prefixes.is_empty() {
                    let ready = if front.admin_port.is_some() { format!(" ready_{name}") } else { String::new() };
                    rules.push(format!("    use-server {name} if {word}_{name}{ready}"));
                }
            }
        }
        let servers = lines(self.nodes.iter().map(|node| format!("    server {} {}", node.name, node.address())), "\n");
        let asking = |path: &str| {
            format!(
                "    option httpchk\n    http-check send meth GET uri {path} ver HTTP/1.1 hdr Host localhost hdr Connection close\n    \
                 http-check expect status 200"
            )
        };
        let away = "is away, and so are the devices it had: they come back to another.";
        let often = "inter 1s fall 2 rise 1";
        let own = format!("{often} send-proxy-v2 on-marked-down shutdown-sessions{resolved}");
        let (checked, ready) = match front.admin_port {
            Some(port) => {
                let is_up = |node: &Node| format!("    acl ready_{0} srv_is_up(ready/{0})", node.name);
                lists.extend(self.nodes.iter().map(is_up));
                let ready = format!(
                    "\n# Serves nobody: who takes new devices. A node that drains does not, and keeps those it has until it has told them.\n\
                     backend ready\n{}\n    default-server check port {port} {often}{resolved}{servers}",
                    asking("/readyz"),
                );
                let lives = asking("/livez");
                let checked = format!(
                    "    # Who does not say that it lives {away}\n{lives}\n    default-server check port {port} {own}"
                );
                (checked, ready)
            }
            None => (format!("    # Who accepts no connection {away}\n    default-server check {own}"), String::new()),
        };
        fill(
            include_str!("haproxy.cfg"),
            &[
                ("preface", &self.preface(Proxy::Haproxy, front)),
                ("resolvers", resolvers),
                ("port", &front.port.to_string()),
                ("certificate", &front.certificate),
                ("lists", &lists.join("\n")),
                ("rules", &rules.join("\n")),
                ("checked", &checked),
                ("servers", servers.trim_start_matches('\n')),
                ("ready", &ready),
            ],
        )
    }

    fn nginx(&self, front: &Front) -> String {
        // By their places in the table: names could be taken for one another's when they are joined. Only the first of a pair and the
        // second matter; whoever is third is the same to nginx as whoever is fourth.
        let place = |node: &Node| 1 + self.nodes.iter().position(|it| it == node).unwrap_or_default();
        let mut pairs: BTreeMap<Vec<usize>, (&[Node], Vec<String>)> = BTreeMap::new();
        for prefix in 0..=u8::MAX {
            let ranked = self.ranked(prefix);
            let pair = ranked.iter().take(2).map(place).collect();
            pairs.entry(pair).or_insert_with(|| (ranked, Vec::new())).1.push(hex(prefix));
        }
        let server =
            |node: &Node, role: &str| format!("        server {}{role} max_fails=1 fail_timeout=5s;\n", node.address());
        let (mut maps, mut upstreams) = (Vec::new(), Vec::new());
        for (pair, (ranked, prefixes)) in &pairs {
            let upstream = lines(pair.iter().map(usize::to_string), "_");
            let names = ranked.iter().take(2).map(Node::name).collect::<Vec<_>>().join(", then ");
            let roles = ["", " backup weight=1000"].into_iter().chain(std::iter::repeat(" backup"));
            let servers: String = ranked.iter().zip(roles).map(|(node, role)| server(node, role)).collect();
            let prefixes = prefixes.join("|");
            maps.push(format!("        \"~/0a20(?:{prefixes})[0-9a-f]{{62}}[0-9a-f]*/*$\" heliostat{upstream};"));
            upstreams.push(format!("    # {names}\n    upstream heliostat{upstream} {{\n{servers}    }}"));
        }
        let all: String = self.nodes.iter().map(|node| server(node, "")).collect();
        fill(
            include_str!("nginx.conf"),
            &[
                ("preface", &self.preface(Proxy::Nginx, front)),
                ("maps", &maps.join("\n")),
                ("upstreams", &upstreams.join("\n")),
                ("servers", all.trim_end()),
                ("port", &front.port.to_string()),
                ("certificate", &front.certificate),
                ("key", &front.key),
            ],
        )
    }
}

/// Each behind what separates it from what stands before.
fn lines(of: impl IntoIterator<Item = String>, before: &str) -> String {
    of.into_iter().map(|line| format!("{before}{line}")).collect()
}

/// A file with its `@places@` filled in; it ends with one line's end.
fn fill(template: &str, places: &[(&str, &str)]) -> String {
    let filled =
        places.iter().fold(template.to_owned(), |text, (place, with)| text.replace(&format!("@{place}@"), with));
    filled.trim_end().to_owned() + "\n"
}

fn hex(prefix: u8) -> String {
    format!("{prefix:02x}")
}

/// A path that means the same in a shell, in HAProxy's file and in nginx's.
fn plain_path(text: &str) -> Result<String, &'static str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+".contains(&byte);
    if !text.is_empty() && text.bytes().all(is_plain) {
        Ok(text.to_owned())
    } else {
        Err("a path of letters, digits and /._-+ only, which needs no quotes in any of the files it goes into")
    }
}

/// Carries out the command.
///
/// # Errors
/// What is wrong with the nodes.
pub async fn run(tool: Tool) -> Result<ExitCode> {
    let Tool::Plan(args) = tool;
    let plan = Plan::new(args.nodes).into_diagnostic()?;
    let text = match args.proxy {
        None => plan.table().join("\n") + "\n",
        Some(Proxy::Nginx) if args.admin_port.is_some() => {
            return Err(miette!("nginx asks no door how a node is: --admin-port is for HAProxy"));
        }
        Some(proxy) => {
            let usual = match proxy {
                Proxy::Haproxy => "/etc/heliostat/haproxy.pem",
                Proxy::Nginx => "/etc/heliostat/fullchain.pem",
            };
            let certificate = args.certificate.unwrap_or_else(|| usual.to_owned());
            let front = Front { port: args.port, certificate, key: args.key, admin_port: args.admin_port };
            plan.configuration(proxy, &front)
        }
    };
    std::io::stdout().write_all(text.as_bytes()).into_diagnostic()?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(nodes: &[&str]) -> Plan {
        Plan::new(nodes.iter().map(|node| node.parse().unwrap()).collect()).unwrap()
    }

    const THREE: [&str; 3] = ["a=10.0.0.1:8080", "b=10.0.0.2:8080", "c=10.0.0.3:8080"];

    fn names(plan: &Plan, prefix: u8) -> Vec<&str> {
        plan.ranked(prefix).iter().map(Node::name).collect()
    }

    #[test]
    fn a_node_that_comes_takes_its_share_and_nothing_else_moves() {
        let mut nodes: Vec<String> = Vec::new();
        let mut before: Option<Plan> = None;
        for n in 1..=10 {
            nodes.push(format!("node-{n}=10.0.0.{n}:8080"));
            let new = format!("node-{n}");
            let after = plan(&nodes.iter().map(String::as_str).collect::<Vec<_>>());
            if let Some(before) = before {
                for prefix in 0..=u8::MAX {
                    let others = |name: &&str| *name != new;
                    let rest: Vec<_> = names(&after, prefix).into_iter().filter(others).collect();
                    assert_eq!(rest, names(&before, prefix), "{prefix}: in every rank");
                }
            }
            let shares = after.nodes.iter().map(|node| after.prefixes(node, 0).len());
            let fair = 256 / n;
            assert!(shares.clone().all(|share| share >= fair / 2 && share <= fair * 2), "{:?}", after.table());
            assert_eq!(shares.sum::<usize>(), 256);
            before = Some(after);
        }
    }

    #[test]
    fn what_a_node_had_is_spread_over_those_that_stay() {
        let (whole, rest) = (plan(&THREE), plan(&THREE[1..]));
        let mut heirs = BTreeMap::<_, usize>::new();
        for prefix in 0..=u8::MAX {
            let (whole, rest) = (names(&whole, prefix), names(&rest, prefix));
            if whole[0] == "a" {
                assert_eq!(rest[0], whole[1], "who was second is first now");
                *heirs.entry(rest[0].to_owned()).or_default() += 1;
            } else {
                assert_eq!(rest[0], whole[0]);
            }
        }
        assert!(heirs.len() == 2 && heirs.values().all(|&share| share > 20), "{heirs:?}");
    }

    #[test]
    fn names_decide_and_neither_order_nor_address() {
        let (one, other) = (plan(&THREE), plan(&["c=[::1]:1", "a=example.org:2", "b=127.0.0.1:3"]));
        assert!((0..=u8::MAX).all(|prefix| names(&one, prefix) == names(&other, prefix)));
        // What an operator's file was made of must not change with a version.
        assert_eq!(names(&one, 0x00), ["c", "b", "a"]);
        assert_eq!(names(&one, 0xff), ["c", "b", "a"]);
    }

    #[test]
    fn the_table_says_who_gets_how_many() {
        let table = plan(&THREE).table();
        assert_eq!(table[0].split_whitespace().collect::<Vec<_>>(), ["node", "address", "first", "second", "third"]);
        for rank in 2..5 {
            let column = table[1..].iter().map(|row| row.split_whitespace().nth(rank).unwrap());
            assert_eq!(column.map(|cell| cell.parse::<u32>().unwrap()).sum::<u32>(), 256);
        }
        assert_eq!(plan(&THREE[..1]).table()[1].split_whitespace().nth(2), Some("256"));
    }

    #[test]
    fn what_is_no_node_is_refused() {
        for (text, why) in [
            ("10.0.0.1:8080", BadNode::NoName),
            ("=10.0.0.1:8080", BadNode::Name),
            ("-a=10.0.0.1:8080", BadNode::Name),
            ("a;b=10.0.0.1:8080", BadNode::Name),
            ("a b=10.0.0.1:8080", BadNode::Name),
            ("a=10.0.0.1", BadNode::Address),
            ("a=10.0.0.1:0", BadNode::Address),
            ("a=10.0.0.1:70000", BadNode::Address),
            ("a=http://10.0.0.1:80", BadNode::Address),
            ("a=me@10.0.0.1:80", BadNode::Address),
            ("a=a;b:80", BadNode::Address),
            ("a=:80", BadNode::Address),
        ] {
            assert_eq!(text.parse::<Node>(), Err(why), "{text}");
        }
        for text in ["a=[2001:db8::1]:8080", "east_1.node-1=node-1.example.org:8080", "A=localhost:1"] {
            text.parse::<Node>().unwrap();
        }
        let nodes = |texts: &[&str]| Plan::new(texts.iter().map(|text| text.parse().unwrap()).collect()).unwrap_err();
        assert_eq!(nodes(&[]), BadPlan::Number);
        assert_eq!(nodes(&["a=h:1", "a=h:2"]), BadPlan::Twice("a".to_owned()));
        assert_eq!(nodes(&["a=h:1", "b=h:1"]), BadPlan::Twice("h:1".to_owned()));
    }

    #[test]
    fn what_would_end_a_word_in_a_file_is_no_path() {
        plain_path("/etc/heliostat/full-chain_1.pem").unwrap();
        for text in ["", "/etc/my key.pem", "/a;b", "/a\nb", "/a\"b", "/a{b", "/a$b", "/a#b", "/a@b"] {
            plain_path(text).unwrap_err();
        }
    }
}
