"""What every part needs: compiling, types, logging, memory, arguments."""
