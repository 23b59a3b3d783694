"""From a cell's notifications to whoever wants them: streams on the bus, and notifiers with cursors of their own."""
