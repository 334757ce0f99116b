"""What every command says and how it ends: options, output, errors; not what it computes."""
