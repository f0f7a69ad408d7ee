/* What else redirects a call, by the same means as in a kernel: what the generated code is compared with.
 *
 * peer_registers	as ftrace_regs_caller: saves the register file, asks a handler, returns to another place
 * peer_arguments	as ftrace_caller: the same with no more saved than a C function may change (x86_64 alone)
 * peer_jump		an indirect jump
 * peer_retpoline	the same without letting the processor guess
 */
	.text
	.globl _start
#ifdef __x86_64__
_start:	and $-16, %rsp
	call begin

	.macro each move
	\move %rax, 80
	\move %rcx, 88
	\move %rdx, 96
	\move %rsi, 104
	\move %rdi, 112
	\move %r8, 72
	\move %r9, 64
	\move %rbp, 32
	.endm
	.macro others move
	\move %r15, 0
	\move %r14, 8
	\move %r13, 16
	\move %r12, 24
	\move %rbx, 40
	\move %r11, 48
	\move %r10, 56
	.endm
	.macro save register at
	mov \register, \at(%rsp)
	.endm
	.macro restore register at
	mov \at(%rsp), \register
	.endm

	/* Above what is saved: the place behind the call in the function, then the caller's. */
	.balign 16
	.globl peer_registers
peer_registers:
	pushfq
	sub $168, %rsp
	each save
	others save
	mov 168(%rsp), %rcx
	mov %rcx, 144(%rsp)
	movq $0x33, 136(%rsp)
	movq $0x2b, 160(%rsp)
	lea 184(%rsp), %rcx
	mov %rcx, 152(%rsp)
	mov 176(%rsp), %rdi
	mov %rdi, 128(%rsp)
	sub $5, %rdi
	mov 184(%rsp), %rsi
	lea peer_first(%rip), %rdx
	mov %rsp, %rcx
	call peer_handler
	mov 144(%rsp), %rax
	mov %rax, 168(%rsp)
	mov 128(%rsp), %rax
	mov %rax, 176(%rsp)
	each restore
	others restore
	add $168, %rsp
	popfq
	ret

	.balign 16
	.globl peer_arguments
peer_arguments:
	sub $168, %rsp
	each save
	mov 168(%rsp), %rdi
	mov %rdi, 128(%rsp)
	sub $5, %rdi
	mov 176(%rsp), %rsi
	lea peer_first(%rip), %rdx
	mov %rsp, %rcx
	call peer_handler
	mov 128(%rsp), %rax
	mov %rax, 168(%rsp)
	each restore
	add $168, %rsp
	ret

	.balign 16
	.globl peer_jump
peer_jump:
	jmp *peer_list + 8(%rip)

	.balign 16
	.globl peer_retpoline
peer_retpoline:
	mov peer_list + 8(%rip), %r11
	call 1f
2:	pause
	lfence
	jmp 2b
1:	mov %r11, (%rsp)
	ret
#else
_start:	and $-16, %esp
	call begin

	.balign 16
	.globl peer_registers
peer_registers:
	pushf
	push %eax
	push %ebp
	push %edi
	push %esi
	push %edx
	push %ecx
	push %ebx
	mov %esp, %ecx
	mov 32(%ecx), %eax
	mov 36(%ecx), %edx
	push %ecx
	mov $peer_first, %ecx
	sub $5, %eax
	call peer_handler
	add $4, %esp
	pop %ebx
	pop %ecx
	pop %edx
	pop %esi
	pop %edi
	pop %ebp
	pop %eax
	popf
	ret

	.balign 16
	.globl peer_jump
peer_jump:
	jmp *peer_list + 4

	.balign 16
	.globl peer_retpoline
peer_retpoline:
	push peer_list + 4
	call 1f
2:	pause
	lfence
	jmp 2b
1:	lea 4(%esp), %esp
	ret
#endif
	/* What redirected calls of the peers come to. */
	.balign 16
peer_replacement:
#ifdef __x86_64__
	lea 2(%rdi,%rdi,2), %rax
#else
	lea 2(%eax,%eax,2), %eax
#endif
	ret

	.globl peer_jump_direct
	.set peer_jump_direct, peer_replacement

	.data
	.balign 16
#ifdef __x86_64__
peer_list:	.quad 0, peer_replacement
peer_first:	.quad peer_list
#else
peer_list:	.long 0, peer_replacement
peer_first:	.long peer_list
#endif
	.section .note.GNU-stack,"",@progbits
