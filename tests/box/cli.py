"""`box VERB`: the test host on the command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence

from .host import Box, clean, pytest, run
from .machine import environment
from .report import BoxError
from .topology import UPSTREAMS

_PLACES = {"exec": "host", "node": "node", "inet": "inet", "gw": "gw"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; its exit code (that of the command for verbs that run one)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # all after `pytest` is pytest's own, also what looks like an option of ours
    own, passed_on = (words[:1], words[1:]) if words[:1] == ["pytest"] else (words, [])
    options = _parser().parse_args(own)
    try:
        if options.verb == "pytest":
            pytest(passed_on)
        return _verb(options)
    except BoxError as error:
        print(f"box: {error}", file=sys.stderr)
    except AssertionError as error:  # a command of ours failed in the box
        print(f"box: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("box: interrupted", file=sys.stderr)
    return 1


def _verb(options: argparse.Namespace) -> int:
    verb = options.verb
    if verb == "run":
        run(options.command, read_only=options.ro, cluster=options.cluster, browser=options.browser)
    if verb == "clean":
        clean()
        return 0
    box = Box()
    match verb:
        case "up":
            box.up(bare=options.bare)
        case "exec" | "node" | "inet" | "gw":
            _become(box, _PLACES[verb], options.command, options.stdin)
        case "shell":
            _become(box, options.where, ["bash", "-l"], stdin=True)
        case "internet":
            (box.cut_internet if options.state == "cut" else box.mend_internet)()
        case "bytes":
            counted = {name: dataclasses.asdict(traffic) for name, traffic in box.bytes().items()}
            _print(counted.pop("total") | {"upstreams": counted})
        case "push":
            _print(box.push(options.upstream, options.image, layer_sizes=options.layer_size or [1_000_000],
                            seed=options.seed))  # fmt: skip
        case "images":
            _print(box.images())
        case "status":
            _print(box.status())
        case "node-configure":
            box.node_configure(options.folder)
        case _:
            getattr(box, verb.replace("-", "_"))()
    return 0


def _become(box: Box, where: str, command: Sequence[str], stdin: bool) -> None:
    """Replace this process by the command in the box: signals, terminal and exit code are then its own."""
    argv = box.command(where, command)
    if not stdin:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.execve(argv[0], argv, environment())


def _print(answer: object) -> None:
    print(json.dumps(answer, indent=1))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="box", description="The test host: Debian 13 with systemd and podman, a LAN, an internet and a node.",
        epilog="BOX=NAME chooses one of several boxes (default: main).",
    )  # fmt: skip
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=text, description=text)

    verb("build", "build what a box needs and is missing")
    up = verb("up", "boot a pristine box with the project of this tree installed")
    up.add_argument("--bare", action="store_true", help="without the project")
    verb("down", "stop it and drop its state")
    verb("reboot", "reboot with its state; returns when it is up again")
    verb("kill", "power cut: kill every process at once, keep the state")
    verb("start", "boot again with the state that is there")
    verb("status", "what there is, as JSON")
    for name, text in (("exec", "on the cache host"), ("node", "on the cluster node"),
                       ("inet", "on the internet"), ("gw", "on the router")):  # fmt: skip
        command = verb(name, f"run a command {text}; its exit code is passed on")
        command.add_argument("-i", dest="stdin", action="store_true", help="pass standard input to it")
        _command(command)
    command = verb("run", "run a command in Debian 13 with the developers' tools, without booting, in this tree")
    command.add_argument("--ro", action="store_true", help="the tree cannot be written")
    command.add_argument("--cluster", action="store_true", help="with a kube-apiserver in KUBEBUILDER_ASSETS")
    command.add_argument("--browser", action="store_true", help="with Chromium and its driver")
    _command(command)
    verb("pytest", "run pytest on this machine, for tests that drive the box; its arguments follow")
    shell = verb("shell", "a shell on the cache host, or elsewhere")
    shell.add_argument("where", nargs="?", default="host", choices=["host", "node", "inet", "gw"])
    verb("internet", "cut or mend the link to the internet").add_argument("state", choices=["cut", "mend"])
    verb("bytes", "what crossed the link to the internet since boot, as JSON")
    verb("images", "what the upstreams serve, with digests and sizes, as JSON")
    push = verb("push", "make an image and push it to an upstream; digests and sizes as JSON")
    push.add_argument("upstream", choices=[u.name for u in UPSTREAMS])
    push.add_argument("image", metavar="REPO:TAG")
    push.add_argument("--layer-size", type=int, nargs="+", metavar="BYTES", help="one layer each")
    push.add_argument("--seed", type=int, default=0, help="other bytes for another number")
    verb("clean", "stop every box and remove all that was built")
    verb("node-configure", "install a publication folder of the cache host on the node").add_argument("folder")
    verb("node-reset", "drop all images and storage of the node")
    return parser


def _command(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("command", nargs="+", metavar="-- COMMAND")
