/* Written for the tests: the function's type, as v4.19 has it. */

enum bpf_perf_event_ret {
	LIBBPF_PERF_EVENT_DONE	= 0,
};

typedef enum bpf_perf_event_ret (*bpf_perf_event_print_t)(void *event,
							  void *priv);
int bpf_perf_event_read_simple(void *mem, unsigned long size,
			       unsigned long page_size,
			       void **buf, size_t *buf_len,
			       bpf_perf_event_print_t fn, void *priv);
