"""Run migrations on the connection that ``fleet.database`` hands over."""

from alembic import context

from edgewise.drivers.fleet.tables import META

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=META,
    render_as_batch=True,  # SQLite cannot change a column in place
    transactional_ddl=False,  # the caller has begun the transaction
)
context.run_migrations()
