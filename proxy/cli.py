"""
The command line: run the proxy, and operate a running one through its admin API.

Imports little at the top: a switch should not wait for half the proxy to load.
"""

import functools
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from proxy.core.errors import ConfigError
from proxy.settings.near import near

if TYPE_CHECKING:
    from proxy.tools.settle_report import Report

Command = TypeVar("Command", bound=Callable[..., Any])

EXIT_UNHEALTHY = 1
EXIT_MISTAKES = 2

_ADMIN_TIMEOUT_S = 5.0
_RELOAD_TIMEOUT_S = 600.0  # one worker after the other; a start takes a second or two
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


class Duration(click.ParamType[float]):
    """``10ms``, ``30s``, ``10m``, ``2h``, ``1d``; in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        """Called by click."""
        match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)(ms|[smhd])", str(value).strip())
        if match is None or float(match[1]) == 0:
            self.fail(f"{value!r} is not a duration; allowed: 30s, 10m, 2h, 1d, 10ms", param, ctx)
        return float(match[1]) * _SECONDS[match[2]]


class OneOf(click.Choice[str]):
    """One of several words; for another one, the nearest of them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401
        """Called by click."""
        if value not in self.choices:
            self.fail(f"{value!r} is not one of {', '.join(self.choices)}{near(value, self.choices)}", param, ctx)
        return str(value)


class Commands(click.Group):
    """Commands; for an unknown one, the nearest of them."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Called by click."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"there is no command {args[0]!r}{near(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="dashcache", prog_name="dashcache")
def main() -> None:
    """A transparent caching proxy for DashScope and DashVector; `check` shows its settings and their sources."""


@main.command()
def run() -> None:
    """
    Start the proxy in the foreground.

    Ctrl-C or SIGTERM drains and ends it, SIGHUP reloads its settings.
    """
    from proxy.runtime.process import forget_metrics_directory, load_sparingly  # noqa: PLC0415

    forget_metrics_directory()
    load_sparingly()
    from proxy.supervisor.start import RunFailedError  # noqa: PLC0415  only after the lines above
    from proxy.supervisor.start import run as run_supervisor  # noqa: PLC0415

    try:
        run_supervisor(os.environ)
    except ConfigError as error:
        _fail_with_mistakes(error)
    except RunFailedError as error:
        _fail(f"dashcache cannot run: {error}")


@main.command("try")
def try_out() -> None:
    """
    Start a proxy before a simulated vendor, to try it out.

    It prints two curl lines to send to it: a miss, then a hit.

    From a checkout only (`make try`): the simulator is part of the tests, and not of the installed package. The proxy
    listens on DASHCACHE_HTTP_LISTEN and DASHCACHE_ADMIN_LISTEN, or on their defaults; no other setting of yours, and
    neither your data folder nor your Redis, is used. Ctrl-C ends it.
    """
    from proxy.tools import try_out  # noqa: PLC0415

    try:
        status = try_out.run(os.environ)
    except try_out.NoSimulatorError as error:
        _fail(str(error))
    sys.exit(status)


@main.command()
@click.option("--connect", is_flag=True, help="Also try the Redis of the settings; status 1 if it cannot be used.")
def check(*, connect: bool) -> None:
    """
    Show the settings in force and where each comes from.

    Status 2: there are mistakes in them, and every one is shown.
    """
    from proxy.runtime.data_folder import secret_of_own  # noqa: PLC0415
    from proxy.settings.circles import circles  # noqa: PLC0415
    from proxy.settings.explain import explain  # noqa: PLC0415
    from proxy.settings.load import load_with_sources  # noqa: PLC0415

    try:
        loaded = load_with_sources(os.environ)
    except ConfigError as error:
        _fail_with_mistakes(error)
    click.echo(explain(loaded.settings, loaded.sources, secret_of_own(loaded.settings.data_dir)))
    for warning in (*loaded.warnings, *circles(loaded.settings)):
        click.echo(f"warning: {warning}", err=True)
    if connect:
        from proxy.tools.redis_check import redis_trouble  # noqa: PLC0415

        if loaded.settings.redis.url is None:
            click.echo("redis: none is configured, so the proxy starts one of its own")
        elif trouble := redis_trouble(loaded.settings):
            _fail(f"redis: {trouble}")
        else:
            click.echo("redis: usable")


def admin_options(command: Command) -> Command:
    """Where the running proxy's admin API is."""
    return click.option(
        "--admin", metavar="URL", help="Admin API, for example http://127.0.0.1:9180; by default the running one's."
    )(command)


def scope_options(command: Command) -> Command:
    """What a switch is about, for how long, and why."""
    for option in (
        click.option("--reason", default="", help="Noted in the log and shown with the rule."),
        click.option("--upstream", default="*", help="Only this upstream, by name.", show_default=True),
        click.option("--operation", default="*", help="Only this operation.", show_default=True),
        click.option("--for", "for_s", type=Duration(), help="End by itself after 30s, 10m, 2h …"),
    ):
        command = option(command)
    return command


@main.command()
@click.argument("switch", type=OneOf(["on", "off"]))
@scope_options
@admin_options
def bypass(switch: str, **options: Any) -> None:  # noqa: ANN401  click's own
    """
    Bypass the cache (on), or use it again (off).

    Bypassed requests go straight through: nothing is read from the cache or stored.
    """
    _set_mode("bypass" if switch == "on" else "on", **options)


@main.command()
@click.argument("name", metavar="MODE", type=OneOf(["on", "bypass", "shadow"]))
@scope_options
@admin_options
def mode(name: str, **options: Any) -> None:  # noqa: ANN401  click's own
    """
    Set the mode: on, bypass or shadow.

    bypass: nothing is read or stored. shadow: always forward, and compare with what the cache holds.
    """
    _set_mode(name, **options)


@main.command()
@click.option("--all", "everything", is_flag=True, help="Everything, of every upstream.")
@click.option("--upstream", help="Only of this upstream, by name.")
@click.option("--operation", help="Only of this operation.")
@click.option("--model", help="Only of this model, as it is asked for.")
@click.option("--collection", help="Only of this DashVector collection.")
@click.option("--yes", is_flag=True, help="Do not ask before purging everything.")
@admin_options
def purge(*, everything: bool, yes: bool, admin: str | None, **scope: str | None) -> None:
    """
    Answer nothing again that is cached now, or a part of it.

    With several options, the part is what all of them apply to.

    What is being fetched just now is not answered again either. One request alone is renewed by sending it with
    Cache-Control: no-cache.
    """
    named = {kind: name for kind, name in scope.items() if name is not None}
    if everything == bool(named):
        raise click.UsageError("say either --all, or what: --upstream, --operation, --model, --collection")
    if everything and not yes:
        click.confirm("Everything will be asked, and paid for, anew. Purge it all?", abort=True)
    _, document = _ask(admin, "POST", "/v1/purge", {"all": True} if everything else named)
    shown = "everything" if everything else ", ".join(f"{kind} {name}" for kind, name in document["scope"].items())
    click.echo(f"purged {shown}: confirmed by {document['confirmed']} of {document['workers']} workers")
    click.echo(f"token {document['token']}")
    for kind, name in document["unknown"].items():
        click.echo(
            f"nothing is known here of {kind} {name}: no answer of it was kept, or given from the cache, since the"
            " start; a typing error? It is purged all the same"
        )
    _warn_of_what_is_left(document)
    _fail_unless_confirmed(document["unconfirmed"])


@main.command()
@admin_options
def reload(admin: str | None) -> None:
    """
    Put changed settings in force without losing a request.

    They are read anew, and new workers take the place of the old ones.

    The environment stays what it was at the start. Status 1: refused, and everything is as before.
    """
    _, document = _ask(admin, "POST", "/v1/reload", {}, timeout_s=_RELOAD_TIMEOUT_S)
    workers = document["workers"]
    click.echo(f"reloaded: {workers['serving']} of {workers['wanted']} workers serve with the settings of now")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="As the admin API gives it.")
@admin_options
def stats(*, as_json: bool, admin: str | None) -> None:
    """
    Show requests, hit ratios, calls, tokens and money saved.

    Below the table stands what each column means.
    """
    from proxy.admin.legend import LEGEND  # noqa: PLC0415
    from proxy.admin.table import table  # noqa: PLC0415

    _, document = _ask(admin, "GET", "/v1/stats")
    click.echo(json.dumps(document, indent=2) if as_json else f"{table(document)}\n\n{LEGEND}")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="As the admin API gives it.")
@admin_options
def workers(*, as_json: bool, admin: str | None) -> None:
    """
    Ask each worker how it does.

    Shown are its connections, requests and memory, how late its loop was, and the breaker. Status 1: fewer answer than
    there should be.
    """
    from proxy.admin.table import workers_table  # noqa: PLC0415

    _, document = _ask(admin, "GET", "/v1/workers")
    click.echo(json.dumps(document, indent=2) if as_json else workers_table(document))
    if sum(each["answers"] for each in document["workers"]) < document["wanted"]:
        sys.exit(EXIT_UNHEALTHY)


@main.command()
@admin_options
def health(admin: str | None) -> None:
    """
    Ask how the proxy is.

    Status 1: it is unhealthy, or not there.
    """
    status, document = _ask(admin, "GET", "/healthz", accept=(200, 503))
    click.echo(json.dumps(document, indent=2))
    if status != 200:
        sys.exit(EXIT_UNHEALTHY)


def _in_a_folder(_context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """Refuses at once what could not be written after minutes of measuring."""
    if path is not None and not path.parent.is_dir():
        raise click.BadParameter(f"there is no folder {path.parent}", param=parameter)
    return path


def probe_options(command: Command) -> Command:
    """Where to measure, how thoroughly, and where the figures go."""
    file = click.Path(dir_okay=False, path_type=Path)
    for option in (
        click.option("--metrics-file", type=file, callback=_in_a_folder, help="Also for node_exporter: DIR/NAME.prom."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
        click.option("--interval", type=Duration(), default="10ms", show_default=True, help="Pause between two polls."),
        click.option("--timeout", type=Duration(), default="30s", show_default=True, help="For a whole round."),
        click.option(
            "--sightings", type=click.IntRange(1, 100), default=3, show_default=True, help="So many in a row."
        ),
        click.option("--rounds", type=click.IntRange(1, 10_000), default=20, show_default=True, help="So many writes."),
        click.option("--collection", metavar="NAME", required=True, help="An existing one, best an empty one."),
        click.option("--url", help="The vendor: https://host. By default dashvector_url of the settings."),
    ):
        command = option(command)
    return command


@main.command("settle-probe")
@probe_options
def settle_probe(*, as_json: bool, metrics_file: Path | None, **options: Any) -> None:  # noqa: ANN401  click's own
    """
    Measure how long DashVector takes to show a write.

    That is what vector.settle_s must cover. Each round writes a document, polls fetch and query until both show it,
    deletes it, and polls until neither does. Replicas may learn of a write one after the other: so a change counts once
    it was seen several times in a row, and the time is that of the first answer after the last old one.

    Recommended is twice the longest time of all rounds, as a few rounds do not meet the slowest moment, and never less
    than 0.1 s; rounded up to tenths below 1 s, to halves below 10 s, to whole seconds above.

    The API key comes from DASHVECTOR_API_KEY. Only documents named dashcache-probe-... are written; they are deleted,
    also after Ctrl-C. The vendor may bill the calls, and may limit their rate: a longer --interval means fewer.

    Status 0: measured, with a warning when the configured vector.settle_s is shorter. 1: could not be measured.
    2: mistakes in use or in the settings.
    """
    from proxy.tools import settle_report  # noqa: PLC0415

    outcome = _measured(**options)
    click.echo(settle_report.as_json(outcome) if as_json else settle_report.table(outcome))
    for warning in settle_report.warnings(outcome):
        click.echo(f"warning: {warning}", err=True)
    if metrics_file is not None:
        try:
            settle_report.write_metrics(outcome, metrics_file)
        except OSError as error:
            _fail(f"{metrics_file}: {error.strerror}")


def _measured(
    *, url: str | None, collection: str, rounds: int, sightings: int, timeout: float, interval: float
) -> "Report":
    from proxy.settings.load import load  # noqa: PLC0415
    from proxy.tools.settle_probe import Plan, ProbeError  # noqa: PLC0415
    from proxy.tools.settle_report import report  # noqa: PLC0415
    from proxy.tools.settle_vendor import checked_target, measure  # noqa: PLC0415

    try:
        settings = load(os.environ)
        target = checked_target(url or settings.dashvector_url, collection, os.environ)
    except ConfigError as error:
        _fail_with_mistakes(error)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    plan = Plan(rounds, sightings, timeout, interval)
    try:
        samples = measure(target, plan, functools.partial(click.echo, err=True))
    except ProbeError as error:
        _fail(str(error))
    return report(target.url, collection, plan, samples, settings.vector.settle_s)


def _set_mode(name: str, *, for_s: float | None, operation: str, upstream: str, reason: str, admin: str | None) -> None:
    order: dict[str, Any] = {"mode": name, "operation": operation, "upstream": upstream, "reason": reason}
    if for_s is not None:
        order["for_s"] = for_s
    _, document = _ask(admin, "PUT", "/v1/mode", order)
    workers = document["workers"]
    click.echo(f"{name}: confirmed by {workers['confirmed']} of {workers['serving']} workers")
    _warn_of_what_is_left(document)
    for upstream_name, operations in document["effective"].items():
        for operation_name, effective in operations.items():
            click.echo(f"  {upstream_name} {operation_name}: {effective}")
    _fail_unless_confirmed(workers["unconfirmed"])


def _warn_of_what_is_left(document: dict[str, Any]) -> None:
    """Say so if an order has not come everywhere yet."""
    if document["replicas"] == "pending":
        click.echo("other replicas: not yet, Redis cannot be reached; they are told when it is back", err=True)
    if not document["persisted"]:
        click.echo("not written to the data folder: a restart will forget it", err=True)


def _fail_unless_confirmed(unconfirmed: list[int]) -> None:
    """Status 1 if a worker has not said that it goes by an order: a script must not take it for done."""
    if unconfirmed:
        which = ", ".join(map(str, unconfirmed))
        _fail(
            f"not confirmed by worker {which}: it may still go by what was before. One that hangs is replaced, and its"
            " successor goes by the order; see `dashcache health`"
        )


def _ask(
    admin: str | None,
    method: str,
    path: str,
    body: object = None,
    accept: tuple[int, ...] = (200,),
    *,
    timeout_s: float = _ADMIN_TIMEOUT_S,
) -> tuple[int, dict[str, Any]]:
    """The status and the document that the admin API answers; ends the program when it cannot be had."""
    from proxy.admin.client import NoAnswerError, ask  # noqa: PLC0415

    try:
        return ask(method, path, body, accept, environ=os.environ, admin=admin, timeout_s=timeout_s)
    except NoAnswerError as error:
        _fail(str(error))
    except ConfigError as error:
        _fail_with_mistakes(error, "no running proxy was found, and these settings do not say where one is:")


def _fail(message: str) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(EXIT_UNHEALTHY)


def _fail_with_mistakes(error: ConfigError, said: str = "dashcache cannot start with these settings:") -> NoReturn:
    click.echo(said, err=True)
    for mistake in error.mistakes:
        click.echo(f"  {mistake}", err=True)
    sys.exit(EXIT_MISTAKES)
