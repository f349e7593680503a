"""What a published row needs, before it is started: `./run.sh plan ROW`."""
