//! A network of one's own: namespaces on a bridge, between which packets can be swallowed.
//!
//! Whoever lays it out is in a namespace of their own by then, the hub, and each [`Node`] has another one. None of them has a
//! name: they are there as long as something of this process, or a child that was started in one, has them open, and the
//! kernel removes them, with links and rules, whatever way it ends. Nothing of the machine's own network is changed.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::{AsFd as _, AsRawFd as _},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Of the hub, where the calling thread is.
pub const HUB: &str = "10.77.0.1";
/// Whose packets are swallowed is a set for each kind of cut. What a node sends is dropped when it comes in, and what is for it
/// before it goes out: the sender is not told, as on a network that is broken somewhere. No connection is looked at, so that
/// what goes one way is dropped and its answers' acknowledgements with it, and nothing of the other way is.
const RULES: &str = "table inet cuts {
    set to_database { type ipv4_addr; }
    set from_database { type ipv4_addr; }
    set to_service { type ipv4_addr; }
    set from_service { type ipv4_addr; }
    chain input {
        type filter hook input priority 0;
        ip saddr @to_database tcp dport DATABASE drop
        ip saddr @from_service tcp sport SERVICE drop
    }
    chain output {
        type filter hook output priority 0;
        ip daddr @from_database tcp sport DATABASE drop
        ip daddr @to_service tcp dport SERVICE drop
    }
}";

/// Packets that can be swallowed: one way of a conversation. Both are cut for a network that is away altogether.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// What the node sends to the hub's database.
    ToDatabase,
    /// What that answers.
    FromDatabase,
    /// What the hub sends to what the node serves.
    ToService,
    /// What that answers.
    FromService,
}

/// One machine on the network.
#[derive(Debug)]
pub struct Node {
    namespace: File,
    address: String,
}

impl Node {
    /// Its address.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What to put before a command that is to run there.
    pub(super) fn entering(&self) -> [String; 2] {
        ["nsenter".to_owned(), format!("--net={}", path(&self.namespace))]
    }

    /// Swallows packets.
    ///
    /// # Errors
    /// When that cannot be done.
    pub fn cut(&self, cut: Cut) -> Result<()> {
        self.change("add", cut)
    }

    /// Passes them again.
    ///
    /// # Errors
    /// When that cannot be done, also when there was no cut.
    pub fn heal(&self, cut: Cut) -> Result<()> {
        self.change("delete", cut)
    }

    fn change(&self, how: &str, cut: Cut) -> Result<()> {
        let set = match cut {
            Cut::ToDatabase => "to_database",
            Cut::FromDatabase => "from_database",
            Cut::ToService => "to_service",
            Cut::FromService => "from_service",
        };
        run("nft", &[how, "element", "inet", "cuts", set, &format!("{{ {} }}", self.address)])
    }
}

/// Moves the calling thread, and the threads and processes that it starts from now on, into a network of its own in which there
/// is nothing but itself.
///
/// # Errors
/// When that is not allowed, which it is for root.
pub fn leave_for_hub() -> Result<()> {
    // Before there is no way back.
    run("ip", &["-Version"])?;
    run("nft", &["--version"])?;
    let hub = namespace()?;
    move_into_link_name_space(hub.as_fd(), Some(LinkNameSpaceType::Network)).context("cannot enter a namespace")?;
    run("ip", &["link", "set", "lo", "up"])
}

/// Lays out a network around the hub, in which the calling thread must be: so many nodes, whose service and whose database on the
/// hub are at these ports.
///
/// # Errors
/// When that is not allowed, or iproute2 or nftables are not there.
pub fn lay_out(nodes: u8, service: u16, database: u16) -> Result<Vec<Node>> {
    let rules = RULES.replace("DATABASE", &database.to_string()).replace("SERVICE", &service.to_string());
    run("nft", &[&rules])?;
    run("ip", &["link", "add", "hub", "type", "bridge"])?;
    run("ip", &["address", "add", &format!("{HUB}/24"), "dev", "hub"])?;
    run("ip", &["link", "set", "hub", "up"])?;
    (0..nodes).map(attach).collect()
}

/// The node of a number.
fn attach(number: u8) -> Result<Node> {
    let node = Node { namespace: namespace()?, address: format!("10.77.0.{}", 11 + u16::from(number)) };
    let port = format!("port{number}");
    let namespace = path(&node.namespace);
    run("ip", &["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &namespace])?;
    run("ip", &["link", "set", &port, "master", "hub", "up"])?;
    let [program, net] = node.entering();
    let inside = |arguments: &[&str]| run(&program, &[&[net.as_str(), "ip"], arguments].concat());
    inside(&["address", "add", &format!("{}/24", node.address), "dev", "eth0"])?;
    inside(&["link", "set", "eth0", "up"])?;
    inside(&["link", "set", "lo", "up"])?;
    Ok(node)
}

/// Where other programs find an open namespace.
fn path(namespace: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd())
}

/// A new namespace, of which somebody else made the first moment.
fn namespace() -> Result<File> {
    let mut maker = Command::new("unshare")
        .args(["--net", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run unshare")?;
    let (mut there, mut said) = ([0], String::new());
    let (stdin, stdout) = (maker.stdin.take(), maker.stdout.take());
    let (mut stdin, mut stdout) = stdin.zip(stdout).context("unshare has no pipes")?;
    // What comes back has gone through it, so it is where it was to go.
    let is_there = stdin.write_all(&[0]).is_ok() && stdout.read_exact(&mut there).is_ok();
    let namespace = File::open(format!("/proc/{}/ns/net", maker.id()));
    drop(stdin);
    if let Some(mut stderr) = maker.stderr.take() {
        let _ = stderr.read_to_string(&mut said);
    }
    maker.wait().context("unshare does not end")?;
    if !is_there {
        bail!("no network of one's own: {}", said.trim_end());
    }
    namespace.context("a namespace cannot be opened")
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io::ErrorKind,
        net::{TcpListener, TcpStream},
        thread,
        time::Duration,
    };

    use super::*;

    /// What is swallowed does not come in this time.
    const SILENCE: Duration = Duration::from_millis(300);
    /// TCP sends again after a while, ever longer ones.
    const AT_LAST: Duration = Duration::from_secs(10);
    const SERVICE: u16 = 7001;
    const DATABASE: u16 = 7002;

    fn passes(from: &mut TcpStream, to: &mut TcpStream) -> bool {
        to.set_read_timeout(Some(SILENCE)).expect("set");
        from.write_all(&[1]).expect("taken by the kernel");
        match to.read_exact(&mut [0]) {
            Ok(()) => true,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// The byte that was swallowed comes when the cut is healed.
    fn comes_at_last(to: &mut TcpStream) {
        to.set_read_timeout(Some(AT_LAST)).expect("set");
        to.read_exact(&mut [0]).expect("sent again");
    }

    /// Calls from one namespace into another: the caller's end, and the called one's.
    fn call(from: &File, to: &File, address: &str, port: u16) -> (TcpStream, TcpStream) {
        let enter = |namespace: &File| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("entered");
        };
        enter(to);
        let listener = TcpListener::bind((address, port)).expect("bound");
        enter(from);
        let caller = TcpStream::connect((address, port)).expect("connected");
        (caller, listener.accept().expect("accepted").0)
    }

    fn cut_one_way_at_a_time() {
        let hub = File::open("/proc/thread-self/ns/net").expect("a namespace");
        let nodes = lay_out(2, SERVICE, DATABASE).expect("laid out");
        let (node, other) = (&nodes[0], &nodes[1]);
        let (mut asking, mut database) = call(&node.namespace, &hub, HUB, DATABASE);
        let (mut envoy, mut service) = call(&hub, &node.namespace, node.address(), SERVICE);
        let (mut unconcerned, mut its_database) = call(&other.namespace, &hub, HUB, DATABASE);
        move_into_link_name_space(hub.as_fd(), Some(LinkNameSpaceType::Network)).expect("back");

        let mut ways = [(Cut::ToDatabase, &mut asking, &mut database), (Cut::ToService, &mut envoy, &mut service)];
        for (cut, near, far) in &mut ways {
            node.cut(*cut).expect("cut");
            assert!(!passes(near, far), "{cut:?}");
            assert!(passes(far, near), "{cut:?} lets the answers through");
            assert!(passes(&mut unconcerned, &mut its_database), "{cut:?} is not for others");
            node.heal(*cut).expect("healed");
            comes_at_last(far);
        }
        for ((_, near, far), cut) in ways.iter_mut().zip([Cut::FromDatabase, Cut::FromService]) {
            node.cut(cut).expect("cut");
            assert!(!passes(far, near), "{cut:?}");
            assert!(passes(near, far), "{cut:?} lets the questions through");
            node.heal(cut).expect("healed");
            comes_at_last(near);
        }
    }

    #[test]
    fn a_cut_swallows_one_way_and_leaves_the_other_and_other_nodes_alone() {
        // The thread ends in the network that it made, and takes it along.
        let playing = thread::spawn(|| match leave_for_hub() {
            Ok(()) => cut_one_way_at_a_time(),
            Err(error) => eprintln!("SKIPPED: {error:#}"),
        });
        playing.join().expect("no panic");
    }
}
