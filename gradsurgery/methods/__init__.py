"""The methods: how the tasks' gradients become one."""
