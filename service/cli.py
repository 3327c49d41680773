"""The `rpiae` command.

Each command imports what it needs when it runs, so that `--help` answers at once.
"""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.command_group import CommandGroup
from service.console import plain_errors, show_address
from service.jobs_command import app as jobs_app
from service.offline_commands import (
    BundleOption,
    decode,
    edit,
    encode,
    generate,
    quiet_threads,
    variation,
)

if TYPE_CHECKING:
    from service.settings import Settings

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pictures from prompts, edits by instruction, and the latents between them.",
    epilog="Every setting is also a variable RPIAE_<NAME>: see docs/configuration.md.",
)
app.add_typer(jobs_app, name="jobs")

RedisOption = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Address of the queue, e.g. redis://host:6379."),
]
HostOption = Annotated[str | None, typer.Option(help="Address to listen on; default: 127.0.0.1.")]
PortOption = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Default: 8000; 0 takes a free one.")
]
WorkersOption = Annotated[int | None, typer.Option(min=1, help="Worker processes; default: 1.")]
ProcessesOption = Annotated[
    int | None, typer.Option(min=1, help="Gateway processes on one port; default: 1.")
]


@app.command()
def serve(
    host: HostOption = None,
    port: PortOption = None,
    workers: WorkersOption = None,
    processes: ProcessesOption = None,
    bundle: BundleOption = None,
    redis_url: RedisOption = None,
) -> None:
    """Serve over HTTP: gateway, workers, and a private Redis unless one is given."""
    with plain_errors():
        from service import supervisor

        settings = _settings(
            host=host,
            port=port,
            workers=workers,
            gateway_processes=processes,
            bundle=bundle,
            redis_url=redis_url,
        )
        supervisor.serve(settings, lambda address: show_address(address, settings))


@app.command()
def gateway(
    host: HostOption = None,
    port: PortOption = None,
    processes: ProcessesOption = None,
    bundle: BundleOption = None,
    redis_url: RedisOption = None,
    index: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run only the HTTP gateway; workers take its jobs from Redis."""
    with plain_errors():
        from service import gateways
        from service.log import configure_logging

        settings = _settings(
            host=host, port=port, gateway_processes=processes, bundle=bundle, redis_url=redis_url
        )
        configure_logging(settings.log_level, settings.log_format)
        gateways.run(settings, typer.echo, index)


@app.command()
def worker(
    bundle: BundleOption = None,
    redis_url: RedisOption = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers that share this machine's CPU cores.")
    ] = None,
    index: Annotated[
        int, typer.Option(min=0, help="Which of them: chooses its GPU and its metrics port.")
    ] = 0,
) -> None:
    """Run only a worker: it takes jobs from Redis and computes them on this machine's device."""
    with plain_errors():
        quiet_threads()
        from service.worker_process import run_worker

        run_worker(_settings(bundle=bundle, redis_url=redis_url, workers=workers), index=index)


for command in (generate, edit, variation, encode, decode):
    app.command()(command)


def main() -> None:
    """Entry point of the installed `rpiae` command."""
    app()


def _settings(**options: Any) -> "Settings":
    from service.settings import load_settings

    return load_settings(**options)


if __name__ == "__main__":
    main()
